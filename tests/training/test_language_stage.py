"""What a run of the language stage saves, and what it refuses to go on from."""

import json

import pytest
from tiny_language import tiny_language_model, tiny_processor
from tiny_repository import make_seed_model
from transformers import AutoModelForCausalLM

from seed import SeedImageProcessorPil, SeedProcessor
from seed.training.language_examples import LoraRecipe
from seed.training.language_stage import save_language_model
from seed.training.lora import add_lora


@pytest.fixture
def image_tokenizer(tmp_path):
    """A SEED repository with an image tokenizer of its own and a decoder on the Hub."""
    folder = tmp_path / "seed"
    make_seed_model().save_pretrained(folder / "image_tokenizer")
    SeedImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder / "image_tokenizer")
    (folder / "processor_config.json").write_text(json.dumps({"decoder": "some/decoder"}))
    return folder


def save(output, image_tokenizer, recipe) -> SeedProcessor:
    model, processor = add_lora(tiny_language_model(), LoraRecipe(rank=2)), tiny_processor()
    model.config.use_cache = False  # as Trainer leaves it
    save_language_model(output, model, processor, "the-text-model", image_tokenizer, recipe)
    return processor


def test_saving_twice_into_one_folder(tmp_path, image_tokenizer):
    output, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 1\n")
    output.mkdir()
    save(output, image_tokenizer, recipe)
    first = {path.relative_to(output) for path in output.rglob("*")}
    recipe.write_text("epochs: 2\n")
    save(output, image_tokenizer, recipe)
    assert {path.relative_to(output) for path in output.rglob("*")} == first
    assert any(path.is_dir() for path in output.iterdir() if path.name not in ("adapter", "checkpoints"))
    assert (output / "recipe.yaml").read_text() == "epochs: 2\n"
    assert SeedProcessor.from_pretrained(output).chat_template.keys() == {"default", "instruction"}
    assert AutoModelForCausalLM.from_pretrained(output).config.use_cache
