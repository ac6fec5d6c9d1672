"""A tiny OPT trained on a toy corpus by the script: run, resume with the same loss curve, load with Auto classes."""

import functools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makers.text_model import TextBlocks, load_text_model_recipe, read_mixture, train_byte_level_tokenizer
from run_example import EXAMPLES, run_script
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTForCausalLM

from seed.training.trainer import TrainingDivergedError

RECIPES = EXAMPLES / "recipes" / "text_model"
TEXTS = ["apple: a round fruit.", "A photo of red apple", "pear: a green fruit.", "The house of the king."]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "train.parquet"
    rows = [{"text": text, "source": "wordnet" if ":" in text else "captions-1"} for text in TEXTS]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def losses(output):
    last = max((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def test_it_trains_resumes_and_loads(corpus, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    arguments = ("--recipe", RECIPES / "smoke.yaml", "--data", corpus, "--max-steps", 4)
    run_script("seed_tiny/train_text_model.py", *arguments, "--output", whole)
    shutil.copytree(whole / "checkpoints" / "checkpoint-2", resumed / "checkpoints" / "checkpoint-2")
    (resumed / "checkpoints" / "checkpoint-3").mkdir()  # what a kill leaves of one
    shutil.copytree(whole / "text_tokenizer", resumed / "text_tokenizer")
    run_script("seed_tiny/train_text_model.py", *arguments, "--output", resumed)
    assert losses(whole) == losses(resumed) and len(losses(whole)) == 4
    expected, found = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    assert isinstance(model, OPTForCausalLM) and tokenizer.is_fast
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model.config.bos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.config.use_cache, "Trainer's setting does not stay"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1
    inputs = tokenizer(["apple", "A photo of"], return_tensors="pt", padding=True)
    assert model.generate(**inputs, max_new_tokens=2).shape == (2, inputs.input_ids.shape[1] + 2)


def test_several_processes_are_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("seed.training.runs.process_state", lambda: SimpleNamespace(num_processes=2))
    for script, data in (("seed_tiny/train_text_model.py", corpus), ("finetune_lora.py", tmp_path)):
        with pytest.raises(ValueError, match="runs in one process, and 2 were started"):
            run_script(script, "--recipe", RECIPES / "smoke.yaml", "--data", data, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_run_is_not_gone_on_from(corpus, tmp_path):
    output, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    shutil.copy(RECIPES / "smoke.yaml", recipe)

    def run(*options):
        run_script("seed_tiny/train_text_model.py", "--recipe", recipe, "--data", corpus, "--output", output, *options)

    run("--max-steps", 2)
    run("--max-steps", 3)  # the same run, longer
    assert (output / "checkpoints" / "checkpoint-3").is_dir()
    text = recipe.read_text()
    recipe.write_text(text.replace("dropout: 0.0", "dropout: 0.5"))
    with pytest.raises(ValueError, match="checkpoint-3 is of another run: it differs in recipe.model. "):
        run()
    recipe.write_text(text)
    pq.write_table(pa.Table.from_pylist([{"text": text, "source": "wordnet"} for text in TEXTS]), corpus)
    with pytest.raises(ValueError, match="checkpoint-3 is of another run: it differs in data. "):
        run()


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(corpus, tmp_path, monkeypatch):
    forward, calls = OPTForCausalLM.forward, []

    @functools.wraps(forward)  # Trainer reads the signature
    def diverging(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        calls.append(None)
        if len(calls) == 4:
            outputs["loss"] = outputs["loss"] * float("nan")
        return outputs

    monkeypatch.setattr(OPTForCausalLM, "forward", diverging)
    output = tmp_path / "out"
    with pytest.raises(TrainingDivergedError, match="The loss is nan at step 4, .*checkpoint-2"):
        run_script("seed_tiny/train_text_model.py", "--recipe", RECIPES / "smoke.yaml", "--data", corpus,
                   "--max-steps", 6, "--output", output)  # fmt: skip
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (output / "model.safetensors").exists()


def test_the_tokenizer_writes_any_text():
    tokenizer = train_byte_level_tokenizer(TEXTS, 280)
    text = "Äpfel, 日本\n\t🍎 <img>"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:]) == text
    with pytest.raises(ValueError, match="258"):
        train_byte_level_tokenizer(TEXTS, 100)


def test_blocks_are_the_documents_in_a_row():
    tokenizer = train_byte_level_tokenizer(TEXTS, 280)
    blocks = TextBlocks(TEXTS, tokenizer, 8)
    stream = [token for text in TEXTS for token in [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]]
    assert np.array_equal(blocks.blocks.ravel(), stream[: len(stream) // 8 * 8])
    example = blocks[1]
    assert example["input_ids"].tolist() == example["labels"].tolist() == stream[8:16]
    with pytest.raises(ValueError, match="1000"):
        TextBlocks(TEXTS, tokenizer, 1000)


def test_the_mixture_follows_the_weights(corpus, tmp_path):
    mixture = read_mixture(corpus, {"wordnet": 3.0, "captions-1": 0.0})
    assert sorted(mixture) == sorted([TEXTS[0], TEXTS[2]] * 3)
    assert mixture == read_mixture(corpus, {"wordnet": 3.0, "captions-1": 0.0})
    many = tmp_path / "many.parquet"
    pq.write_table(pa.table({"text": [str(n) for n in range(2000)], "source": ["a"] * 2000}), many)
    thinned = read_mixture(many, {"a": 0.3})
    assert 500 < len(thinned) == len(set(thinned)) < 700
    pq.write_table(pa.table({"text": ["a", None, " "], "source": ["a", "a", None]}), many)
    assert read_mixture(many, {"a": 2.0}) == ["a", "a"]
    with pytest.raises(ValueError, match="weighs \\['wiki'\\]"):
        read_mixture(many, {"wiki": 1.0})
    with pytest.raises(ValueError, match="'wiki'"):
        read_mixture(corpus, {"wiki": 1.0})
    with pytest.raises(ValueError, match="text"):
        read_mixture(_without_text(tmp_path), {})


def _without_text(folder):
    path = folder / "other.parquet"
    pq.write_table(pa.table({"caption": ["x"]}), path)
    return path


def test_recipes_are_checked(tmp_path):
    for name in ("tiny", "smoke"):
        load_text_model_recipe(RECIPES / f"{name}.yaml")
    text = (RECIPES / "smoke.yaml").read_text()
    for old, new, message in [
        ("block_length: 16", "block_length: 129", "129.*128 positions"),
        ("vocab_size: 300", "vocabsize: 300", "vocabsize"),
        ("ffn_dim: 32", "ffn_width: 32", "ffn_width"),
    ]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            load_text_model_recipe(path)
