import pytest


@pytest.fixture
def config(tiny_seed_config):
    """The tiny config as it stands."""
    return tiny_seed_config()
