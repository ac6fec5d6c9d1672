"""EfficientNet-Lite0 as a folder that a stage starts from."""

import pytest
import torch
from run_example import run_script
from transformers import AutoModel

from seed.evaluation.efficientnet_lite import load_efficientnet_lite
from seed.training.recipes import StageRecipe
from seed.training.stage import make_image_processor


def test_the_encoder_is_a_stock_model_with_its_own_preprocessing(tmp_path):
    run_script("seed_tiny/save_encoder.py", "--size", 96, "--output", tmp_path)
    processor = make_image_processor(StageRecipe(epochs=1, training={}, vision_model=str(tmp_path)))
    assert dict(processor.size) == {"height": 96, "width": 96}
    # The network was trained on (pixel - 127) / 128.
    assert [(100 / 255 - processor.image_mean[0]) / processor.image_std[0]] == pytest.approx([(100 - 127) / 128])
    pixel_values = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        found = AutoModel.from_pretrained(tmp_path)(pixel_values).last_hidden_state
        expected = load_efficientnet_lite("efficientnet-lite0", 96)(pixel_values).last_hidden_state
    assert torch.equal(found, expected)
