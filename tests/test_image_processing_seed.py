"""The image processor against PIL and arithmetic."""

import numpy as np
import pytest
from PIL import Image

from seed import SeedImageProcessorPil

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (1, 1), (17, 900)])
def test_equals_pil_squash_and_the_official_normalisation(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = SeedImageProcessorPil()(image, return_tensors="np")["pixel_values"][0]
    squashed = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float64)
    expected = (squashed / 255 - MEAN) / STD
    assert found.shape == (3, 224, 224)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)).convert(mode)
    found = SeedImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    expected = SeedImageProcessorPil()(image.convert("RGB"), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(found, expected)


def test_saved_settings_come_back(tmp_path):
    SeedImageProcessorPil(size={"height": 160, "width": 96}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    loaded = SeedImageProcessorPil.from_pretrained(tmp_path)
    assert (loaded.size["height"], loaded.size["width"]) == (160, 96) and list(loaded.image_mean) == [0.1, 0.2, 0.3]
    assert loaded(Image.new("RGB", (5, 5)), return_tensors="pt")["pixel_values"].shape == (1, 3, 160, 96)


def test_paths_and_texts_open_the_same_pictures(tmp_path):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    path = tmp_path / "picture.png"
    image.save(path)
    expected = SeedImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    for given in (path, str(path), [path], [str(path)]):
        np.testing.assert_array_equal(SeedImageProcessorPil()(given, return_tensors="np")["pixel_values"], expected)
