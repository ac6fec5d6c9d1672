"""Stage II's target against Stable Diffusion's own pipeline."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_repository import make_stable_diffusion

from seed.training import text_features
from seed.training.datasets import PictureSource, QuantizationCollator, RunDataset
from seed.training.text_features import TextFeatures

CAPTIONS = ["a dog", "red square", "a dog", " ".join(["very"] * 80) + " long", ""]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    make_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def features(decoder):
    return TextFeatures(decoder)


def count_computed(features: TextFeatures) -> list[int]:
    """Sizes of the batches that the encoder reads from now on."""
    sizes = []
    features.text_encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("kept", [True, False])
def test_they_are_what_the_pipeline_gives_its_unet(features, kept):
    if kept:
        features.keep(CAPTIONS, batch_size=2)
    with torch.no_grad():
        expected = make_stable_diffusion().encode_prompt(CAPTIONS, torch.device("cpu"), 1, False)[0]
    sizes = count_computed(features)
    found = features(features.tokenize(CAPTIONS))
    assert found.dtype == torch.float16 and found.shape == (5, 77, features.dim)
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)
    assert sizes == ([] if kept else [5])


def test_more_than_fit_are_not_kept(features, monkeypatch):
    sizes = count_computed(features)
    one = 77 * 40 * 2
    monkeypatch.setattr(text_features, "KEPT_BYTES", 4 * one - 1)
    features.keep(CAPTIONS)  # four different ones
    assert sizes == []
    monkeypatch.setattr(text_features, "KEPT_BYTES", 4 * one)
    features.keep(CAPTIONS)
    assert sizes == [4]


def test_computing_is_in_float32_under_autocast_too(features):
    ids = features.tokenize(CAPTIONS)
    expected = features(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features(ids), expected)


def test_the_collator_takes_the_first_caption_of_the_right_picture(features):
    captions = [["a dog", "a cat"], ["red square", "a cat"], ["blue", "a cat"]]
    images = [lambda: None] * 2
    sources = [
        PictureSource(captions[:2], ["x", "y"], images=images),
        PictureSource(captions[2:], ["z"], images=images[:1]),
    ]
    dataset = RunDataset(sources, 3, first_caption_probability=0.0)
    collator = QuantizationCollator(sources, features.tokenize, lambda images, return_tensors: {})
    examples = [dataset[position] for position in range(3)]
    found = collator(examples)["caption_ids"]
    for example, row in zip(examples, found):
        fixed = captions[2 * example["source"] + example["picture"]][0]
        # the toy tokenizer has letters only
        assert features.tokenizer.decode(row, skip_special_tokens=True).replace(" ", "") == fixed.replace(" ", "")


def test_a_text_encoder_that_lacks_a_tensor_is_refused(decoder, tmp_path):
    shutil.copytree(decoder, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.endswith("fc1.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 tensors of CLIPTextModel.*{lost}"):
        TextFeatures(tmp_path / "damaged")


def test_the_only_variant_is_read(decoder, features, tmp_path):
    shutil.copytree(decoder, tmp_path / "half")
    weights = tmp_path / "half" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("model.fp16.safetensors"))
    ids = features.tokenize(CAPTIONS)
    assert torch.equal(TextFeatures(tmp_path / "half")(ids), features(ids))
