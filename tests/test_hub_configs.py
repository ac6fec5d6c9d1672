"""What hub_configs holds beside seed-tiny, in the repository only: its relatives, the full size's config."""

from pathlib import Path

import pytest
import torch

from seed import SeedConfig, SeedImageProcessorPil, SeedModel, SeedPipeline, default_model

ROOT = Path(__file__).parents[1]
SCALES, NEXT = (ROOT / "hub_configs" / f"seed-tiny-{name}" for name in ("scales", "next"))
PICTURES = ROOT / "seed" / "assets" / "demo"


def test_seed_tiny_scales_differs_from_seed_tiny_after_stage_one_only():
    ours, theirs = (
        SeedModel.from_pretrained(Path(folder) / "image_tokenizer", dtype=torch.float32).state_dict()
        for folder in (SCALES, default_model())
    )
    stage_one = ("vision_model", "vision_layernorm", "qformer", "vision_projection", "text_projection")
    names = [name for name in theirs if name.startswith(stage_one)]
    assert len(names) > 100
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert ours["quantizer.codebook.weight"].shape == (2048, 32)


@pytest.mark.parametrize("folder", [SCALES, NEXT])
def test_they_draw_with_seed_tinys_decoder(folder):
    pipeline = SeedPipeline.from_pretrained(folder, dtype=torch.float32)
    codes = pipeline.tokenize_images([PICTURES / "owl.png", PICTURES / "red-apple.png"])
    assert codes.shape == (2, 32) and (folder == NEXT or codes.max() >= 1024)
    (image,) = pipeline(codes=codes[:1], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert image.size == (64, 64)


@pytest.mark.parametrize("folder, codes", [(SCALES, 2048), (NEXT, 1024)])
def test_they_caption_and_draw_by_their_own_language_models(folder, codes):
    pipeline = SeedPipeline.from_pretrained(folder, language_model=True, dtype=torch.float32)
    model, processor = pipeline.language_model, pipeline.processor
    assert model.config.code_embeddings and model.visual_embeddings.codes.weight.shape == (codes, 256)
    assert model.config.image_tokenizer_hash == pipeline.image_tokenizer.codes_hash()
    prompt = processor.caption_prompts(images=[PICTURES / "orange-book.png"])
    written = model.generate(**prompt, max_new_tokens=8)[:, prompt["input_ids"].shape[1] :]
    assert "book" in processor.batch_decode(written, skip_special_tokens=True)[0]
    (image,) = pipeline(prompt="red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert image.size == (64, 64)


def test_seed_1_has_the_sizes_of_the_paper():
    folder = ROOT / "hub_configs" / "seed-1" / "image_tokenizer"
    ours, default = SeedConfig.from_pretrained(folder).to_dict(), SeedConfig().to_dict()
    told = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert {key for key in ours.keys() | default.keys() if ours.get(key) != default.get(key)} <= told
    assert SeedImageProcessorPil.from_pretrained(folder).size == {"height": 224, "width": 224}
