"""What a run of the language stage saves, and what it refuses to go on from."""

import json
import shutil

import pytest
import torch
from tiny_language import tiny_language_model, tiny_processor
from tiny_repository import make_seed_model
from transformers import AutoModelForCausalLM

import seed.repository_seed
from seed import SeedImageProcessorPil, SeedProcessor
from seed.data.codes import CodesMetadata
from seed.repository_seed import DECODER_FOLDER, IMAGE_TOKENIZER_FOLDER, SeedRepository
from seed.training import language_stage
from seed.training.language_examples import LanguageFile, LanguageRecipe, LoraRecipe, write_views
from seed.training.language_stage import run_language_stage, save_language_model
from seed.training.lora import add_lora


@pytest.fixture
def image_tokenizer(tmp_path):
    """A SEED repository with an image tokenizer of its own and a decoder on the Hub."""
    folder = tmp_path / "seed"
    make_seed_model().save_pretrained(folder / "image_tokenizer")
    SeedImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder / "image_tokenizer")
    (folder / "processor_config.json").write_text(
        json.dumps({"decoder": "some/decoder", "guidance_scale": 3.0, "num_inference_steps": 2})
    )
    return folder


def save(output, image_tokenizer, recipe, **settings) -> SeedProcessor:
    model, processor = add_lora(tiny_language_model(), LoraRecipe(rank=2)), tiny_processor(**settings)
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


def test_pointers_are_relative_and_move_along(tmp_path, image_tokenizer):
    output, recipe = tmp_path / "runs" / "out", tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 1\n")
    output.mkdir(parents=True)
    processor = save(output, image_tokenizer, recipe)
    stored = json.loads((output / "processor_config.json").read_text())
    assert (stored["image_tokenizer"], stored["decoder"]) == ("../../seed/image_tokenizer", "some/decoder")
    expected = make_seed_model().codes_hash()
    processor._image_tokenizer = None
    assert processor.load_image_tokenizer().codes_hash() == expected
    (tmp_path / "moved").mkdir()
    for name in ("runs", "seed"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    moved = tmp_path / "moved" / "runs" / "out"
    assert SeedProcessor.from_pretrained(moved).load_image_tokenizer().codes_hash() == expected
    assert SeedRepository(moved).image_tokenizer_folder().resolve() == tmp_path / "moved" / "seed" / "image_tokenizer"
    # How to draw with that decoder comes along, where the language model's own processor says nothing.
    drawing = ("guidance_scale", "num_inference_steps")
    given = json.loads((tmp_path / "moved" / "seed" / "processor_config.json").read_text())
    assert [stored[name] for name in drawing] == [given[name] for name in drawing] == [3.0, 2]
    own = {"guidance_scale": 5.0, "num_inference_steps": None}
    save(tmp_path / "moved" / "own", tmp_path / "moved" / "seed", recipe, **own)
    stored = json.loads((tmp_path / "moved" / "own" / "processor_config.json").read_text())
    assert [stored[name] for name in drawing] == [5.0, 2]
    alone = tmp_path / "moved" / "seed" / "image_tokenizer"
    assert SeedRepository(alone).pointer_from(moved, IMAGE_TOKENIZER_FOLDER) == "../../seed/image_tokenizer"
    assert SeedRepository(alone).pointer_from(moved, DECODER_FOLDER) is None


def test_hub_ids_stay_hub_ids_and_nothing_large_is_fetched(tmp_path, image_tokenizer, monkeypatch):
    """A stand-in for the Hub, in which a whole repository and an image tokenizer alone lie."""
    hub = {"org/seed": image_tokenizer, "org/tokenizer": image_tokenizer / "image_tokenizer"}
    fetched = []

    def snapshot_download(name, allow_patterns, **options):
        fetched.append((name, tuple(allow_patterns)))
        return str(hub[name])

    monkeypatch.setattr(seed.repository_seed, "snapshot_download", snapshot_download)
    assert SeedRepository("org/tokenizer").pointer_from(tmp_path, IMAGE_TOKENIZER_FOLDER) == "org/tokenizer"
    assert SeedRepository("org/tokenizer").pointer_from(tmp_path, DECODER_FOLDER) is None
    assert SeedRepository("org/seed").pointer_from(tmp_path, IMAGE_TOKENIZER_FOLDER) == "org/seed/image_tokenizer"
    assert SeedRepository("org/seed").pointer_from(tmp_path, DECODER_FOLDER) == "some/decoder"
    assert {patterns for _, patterns in fetched} == {("*.json",)}
    found = SeedRepository(tmp_path, revision="main").follow("org/seed/image_tokenizer", [""])
    assert found == image_tokenizer / "image_tokenizer"
    assert fetched[-1] == ("org/seed", ("image_tokenizer/*",))
    assert SeedRepository(tmp_path).follow("org/tokenizer", [""]) == image_tokenizer / "image_tokenizer"


TRAINING = {
    "per_device_train_batch_size": 2, "learning_rate": 1e-3, "save_steps": 1, "seed": 0, "report_to": [],
    "disable_tqdm": True,
}  # fmt: skip


def run(output, caption: str = "a dog", training: dict = TRAINING, change: bool = False) -> None:
    hash_of_codes = make_seed_model().codes_hash()
    metadata = CodesMetadata(hash_of_codes, "none", "float32", codebook_size=64, num_codes=32)
    codes = torch.arange(64).reshape(2, 1, 32)
    write_views(output.parent / "codes.parquet", codes, [[caption], ["a cat"]], metadata)
    file = LanguageFile(output.parent / "codes.parquet", hash_of_codes, 64, 32)
    base = tiny_language_model()
    if change:
        with torch.no_grad():
            base.model.decoder.layers[0].fc1.weight[0, 0] += 1
    # whatever the new weights are: a fresh draw does not make another run
    torch.manual_seed(torch.seed())
    model = add_lora(base, LoraRecipe(rank=2))
    run_language_stage(output, LanguageRecipe(1, training, {"caption": 1}, 128), model, tiny_processor(), [file])


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path, caplog):
    output = tmp_path / "out"
    run(output)
    assert [path.name for path in (output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    run(output)  # the same: nothing is left to do
    with pytest.raises(ValueError, match="checkpoint-1 is of another run: it differs in data. .* another --output or"):
        run(output, caption="a cow")
    with pytest.raises(ValueError, match="differs in recipe.training.adam_beta2, recipe.training.weight_decay. "):
        run(output, training=TRAINING | {"learning_rate": 1e-2, "adam_beta2": 0.9, "weight_decay": 0.1})
    with pytest.raises(ValueError, match="differs in model. "):
        run(output, change=True)
    assert "of which run" not in caplog.text
    (output / "run.json").unlink()
    run(output, caption="a cow")  # of an older version: it cannot be told, and the log says so
    assert "does not say of which run it is" in "".join(record.getMessage() for record in caplog.records)
    shutil.rmtree(output / "checkpoints")
    run(output)
    assert (output / "checkpoints" / "checkpoint-1").is_dir()


def test_label_smoothing_shifts_the_labels(tmp_path, monkeypatch):
    """Of a vanishing amount it changes nothing; Trainer shifts for models that it knows only."""
    losses = []
    step = language_stage.RunTrainer.training_step

    def noted(self, *args, **kwargs):
        losses.append(float(step(self, *args, **kwargs)))
        return torch.tensor(losses[-1])

    monkeypatch.setattr(language_stage.RunTrainer, "training_step", noted)
    for factor in (0, 1e-9):
        run(tmp_path / str(factor) / "out", training=TRAINING | {"label_smoothing_factor": factor})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_training_is_refused(tmp_path, monkeypatch, name):
    class Sharded(language_stage.RunTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            setattr(self, name, True)

    monkeypatch.setattr(language_stage, "RunTrainer", Sharded)
    with pytest.raises(ValueError, match="DDP, a process for each"):
        run(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.*"))
