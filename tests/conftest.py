"""Shared fixtures."""

import pytest
import torch
from tiny_models import make_tiny_seed_config


@pytest.fixture
def tiny_seed_config():
    """The function `make_tiny_seed_config(**overrides)`."""
    return make_tiny_seed_config


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
