"""Shared fixtures."""

import pytest
import torch
from tiny_models import make_tiny_seed_config


@pytest.fixture
def tiny_seed_config():
    """The function `make_tiny_seed_config(**overrides)`."""
    return make_tiny_seed_config


@pytest.fixture(scope="session")
def seed_repository(tmp_path_factory):
    """A SEED repository with random weights, see `tiny_repository`; copy it before changing it."""
    from tiny_repository import make_seed_repository

    folder = tmp_path_factory.mktemp("seed_repository")
    make_seed_repository(folder)
    return folder


@pytest.fixture(scope="session")
def language_repository(tmp_path_factory):
    """A whole SEED-OPT repository with random weights, see `tiny_language`; copy it before changing it."""
    from tiny_language import make_language_repository

    folder = tmp_path_factory.mktemp("language_repository")
    make_language_repository(folder)
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
