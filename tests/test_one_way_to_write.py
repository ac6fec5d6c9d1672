"""Command, API, pipelines and evaluation: seed-tiny writes the same captions and codes, whichever of them asks it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

import seed
from seed import SeedPipeline, SeedProcessor, write_captions, write_codes
from seed.commands.main import main
from seed.data import load_image, shipped_pictures
from seed.evaluation.language_model import EvaluatedLanguageModel

PICTURES = shipped_pictures()[:3]
PROMPTS = ["red apple", "owl"]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(seed.default_model(), dtype=torch.float32)


@pytest.fixture(scope="module")
def processor():
    return SeedProcessor.from_pretrained(seed.default_model())


@pytest.fixture(scope="module")
def captions(model, processor) -> list[str]:
    """What the API writes."""
    written = write_captions(model, processor, images=PICTURES)
    assert len(set(written)) == len(PICTURES) and all(caption.strip() == caption != "" for caption in written)
    return written


def test_the_api_writes_the_same_caption_for_a_picture_alone_and_for_codes(model, processor, captions):
    assert write_captions(model, processor, images=PICTURES[0]) == captions[:1]
    assert write_captions(model, processor, codes=processor.tokenize_images(PICTURES)) == captions


def test_the_command_writes_what_the_api_writes(captions, capsys):
    assert main(["caption", *map(str, PICTURES)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{path}: {caption}" for path, caption in zip(PICTURES, captions)]


def test_transformers_pipeline_writes_what_the_api_writes(captions, processor):
    reader = pipeline("image-text-to-text", model=seed.default_model(), dtype=torch.float32)
    prompt = f"{processor.image_token}{processor.caption_prompt}"
    images = [load_image(path) for path in PICTURES]  # the pipeline itself would open them on black
    written = reader(images=images, text=[prompt] * len(images), return_full_text=False)
    assert [result["generated_text"].strip() for result in written] == captions
    # A conversation with nothing but the picture asks for its caption, too.
    asked = [{"role": "user", "content": [{"type": "image", "image": images[0]}]}]
    assert reader(text=asked, return_full_text=False)[0]["generated_text"].strip() == captions[0]


def test_the_evaluation_writes_what_the_api_writes(captions, processor):
    evaluated = EvaluatedLanguageModel(seed.default_model())
    assert evaluated.caption(processor.tokenize_images(PICTURES)) == captions


def test_codes_are_written_in_one_way_and_leave_torchs_generator_alone(model, processor):
    drawer = SeedPipeline.from_pretrained(
        seed.default_model(), dtype=torch.float32, language_model=model, processor=processor
    )
    sampled = {"token_temperature": 1.0, "num_images_per_prompt": 2}
    for options in ({}, {"token_guidance_scale": 2.0}, sampled):
        before = torch.get_rng_state()
        from_api, from_pipeline = (
            write(*arguments, PROMPTS, generator=torch.Generator().manual_seed(5), **options)
            for write, arguments in ((write_codes, (model, processor)), (drawer.generate_codes, ()))
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(from_api, from_pipeline)
        assert from_api.shape == (len(PROMPTS) * options.get("num_images_per_prompt", 1), processor.num_codes)
    # The last round sampled, so one prompt's drawings differ.
    assert not torch.equal(from_api[0], from_api[1])
