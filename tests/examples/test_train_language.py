"""Both stages of the language model as a script: run, resume with the same loss curve, hand on, stop at NaN."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_example import EXAMPLES, run_script
from safetensors.torch import load_file
from test_training_stages import losses
from tiny_language import tiny_text_tokenizer
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from seed import SeedModel, SeedOPTForCausalLM, SeedProcessor
from seed.data.codes import CodesMetadata
from seed.training.language_examples import write_views
from seed.training.lora import adapter_base, load_adapter, merge
from seed.training.trainer import FiniteTrainer, TrainingDivergedError


@pytest.fixture(scope="module")
def work(tmp_path_factory, seed_repository) -> Path:
    """A text model, and codes of 12 pictures with two views each."""
    folder = tmp_path_factory.mktemp("language")
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=336, word_embed_proj_dim=32, max_position_embeddings=256, pad_token_id=1, **shape)
    OPTForCausalLM(config).save_pretrained(folder / "text")
    tiny_text_tokenizer().save_pretrained(folder / "text")
    write_codes(folder / "codes.parquet", SeedModel.from_pretrained(seed_repository / "image_tokenizer").codes_hash())
    return folder


def write_codes(path: Path, image_tokenizer: str) -> None:
    metadata = CodesMetadata(image_tokenizer, "none", "float32", codebook_size=64, num_codes=32)
    codes = torch.from_numpy(np.random.default_rng(0).integers(64, size=(12, 2, 32)))
    write_views(path, codes, [[f"a dog {i}"] for i in range(12)], metadata)


def arguments(work: Path, repository: Path, stage: str, model: Path, output: Path) -> list:
    recipe = EXAMPLES / "recipes" / stage / "smoke.yaml"
    return ["--recipe", recipe, "--model", model, "--image-tokenizer", repository, "--data", work / "codes.parquet",
            "--output", output]  # fmt: skip


def run_and_resume(work: Path, repository: Path, stage: str, model: Path) -> Path:
    whole, resumed = work / stage, work / f"{stage}-resumed"
    run_script("train_language.py", *arguments(work, repository, stage, model, whole))
    shutil.copytree(whole / "checkpoints" / "checkpoint-2", resumed / "checkpoints" / "checkpoint-2")
    (resumed / "checkpoints" / "checkpoint-3").mkdir()  # what a kill leaves of one
    run_script("train_language.py", *arguments(work, repository, stage, model, resumed))
    assert losses(whole) == losses(resumed) and len(losses(whole)) == 4
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    return whole


def test_both_stages_run_resume_and_hand_on(work, seed_repository):
    stage1 = run_and_resume(work, seed_repository, "language_stage1", work / "text")
    stage2 = run_and_resume(work, seed_repository, "language_stage2", stage1 / "adapter")

    # The adapter of stage 2 contains stage 1: on the text model alone, it gives the merged repository.
    text = AutoModelForCausalLM.from_pretrained(work / "text")
    seed_model = SeedModel.from_pretrained(seed_repository / "image_tokenizer")
    base = SeedOPTForCausalLM.from_text_model(text, seed_model, text_vocab_size=330)
    ids = torch.cat([torch.randint(3, 330, (1, 6)), torch.arange(330, 340)[None]], dim=1)
    merged = AutoModelForCausalLM.from_pretrained(stage2).eval()
    adapted = merge(load_adapter(base, stage2 / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    text = AutoModelForCausalLM.from_pretrained(work / "text")  # the first has been merged into
    for name in ("model.decoder.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(merged.state_dict()[name], text.state_dict()[name]), f"{name} is not to change"
    assert not torch.equal(merged.model.decoder.layers[0].fc1.weight, text.model.decoder.layers[0].fc1.weight)

    # Which the adapter finds from any folder.
    assert Path(adapter_base(stage2 / "adapter")).resolve() == (work / "text").resolve()
    with pytest.raises(ValueError, match="is the folder of the model that is trained on"):
        run_script("train_language.py", *arguments(work, seed_repository, "language_stage2", stage2, stage2))

    # And the output is a repository to use: its processor finds the image tokenizer.
    processor = SeedProcessor.from_pretrained(stage2)
    assert processor.load_image_tokenizer().codes_hash() == seed_model.codes_hash()
    assert processor.load_image_tokenizer().codes_hash() == merged.config.image_tokenizer_hash
    prompt = processor.drawing_prompts(["a dog 3"])
    drawn = merged.generate(**prompt, generation_mode="image", do_sample=False)
    assert processor.image_codes(drawn).shape == (1, 32)


def test_a_merged_model_is_given_code_embeddings(work, seed_repository, tmp_path):
    """They start at zero, so that the first loss is that without them; they are trained, resumed and merged."""
    AutoModelForCausalLM.from_pretrained(work / "text", dropout=0.0).save_pretrained(tmp_path / "text")
    tiny_text_tokenizer().save_pretrained(tmp_path / "text")
    merged = tmp_path / "merged"
    run_script("train_language.py", *arguments(work, seed_repository, "language_stage1", tmp_path / "text", merged))
    recipe = yaml.safe_load((EXAMPLES / "recipes" / "language_stage2" / "smoke.yaml").read_text())
    recipe["lora"]["dropout"] = 0.0
    for embeddings in (False, True):
        output = tmp_path / f"embeddings-{embeddings}"
        output.mkdir()
        (output / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"code_embeddings": embeddings}))
        command = arguments(work, seed_repository, "language_stage2", merged, output)
        command[1] = output / "recipe.yaml"
        run_script("train_language.py", *command)
    assert losses(output)[1] == pytest.approx(losses(tmp_path / "embeddings-False")[1], abs=1e-5)
    assert losses(output)[4] != losses(tmp_path / "embeddings-False")[4]

    resumed = tmp_path / "resumed"
    shutil.copytree(output / "checkpoints" / "checkpoint-2", resumed / "checkpoints" / "checkpoint-2")
    command[-1] = resumed
    run_script("train_language.py", *command)
    assert losses(resumed) == losses(output)
    embeddings = [
        AutoModelForCausalLM.from_pretrained(folder).visual_embeddings.codes.weight for folder in (output, resumed)
    ]
    assert torch.equal(*embeddings) and (embeddings[0] != 0).any()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "embeddings-False").visual_embeddings.codes is None


def test_two_processes_train_as_one_does(work, seed_repository):
    """With half of the examples each, two processes log the losses of one and end at its weights."""
    recipe = yaml.safe_load((EXAMPLES / "recipes" / "language_stage2" / "smoke.yaml").read_text())
    # Dropout is drawn by each process for itself.
    recipe["lora"]["dropout"] = 0.0
    text = AutoModelForCausalLM.from_pretrained(work / "text")
    text.config.dropout = 0.0
    text.save_pretrained(work / "text-without-dropout")
    tiny_text_tokenizer().save_pretrained(work / "text-without-dropout")
    found = {}
    for processes in (1, 2):
        folder = work / f"processes-{processes}"
        folder.mkdir()
        recipe["training"]["per_device_train_batch_size"] = 6 // processes
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = arguments(work, seed_repository, "language_stage2", work / "text-without-dropout", folder)
        command[1] = folder / "recipe.yaml"
        if processes == 1:
            run_script("train_language.py", *command)
        else:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            script = EXAMPLES / "train_language.py"
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, *launch, script, *command], env=environment, check=True, timeout=300)
        found[processes] = losses(folder), load_file(folder / "adapter" / "adapter_model.safetensors")
    assert found[1][0].keys() == found[2][0].keys() and len(found[1][0]) == 4
    assert all(found[2][0][step] == pytest.approx(loss, abs=2e-3) for step, loss in found[1][0].items())
    for name, tensor in found[1][1].items():
        torch.testing.assert_close(found[2][1][name], tensor, rtol=1e-2, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(work, seed_repository, monkeypatch):
    output, calls = work / "diverging", []
    forward = SeedOPTForCausalLM.forward

    def poisoned(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 4:
            outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(SeedOPTForCausalLM, "forward", poisoned)
    command = arguments(work, seed_repository, "language_stage1", work / "text", output)
    with pytest.raises(
        TrainingDivergedError, match="The loss is nan at step 4, .*checkpoint-2; the same command goes on"
    ):
        run_script("train_language.py", *command)
    assert [path.name for path in (output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (output / "model.safetensors").exists()
    stored = load_file(output / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in stored.values())

    # The advice can be followed: the run goes on from there, at what the recipe says now.
    monkeypatch.setattr(SeedOPTForCausalLM, "forward", forward)
    recipe = yaml.safe_load(Path(command[1]).read_text())
    recipe["training"] |= {"learning_rate": 1e-4, "warmup_steps": 8}
    command[1] = work / "calmer.yaml"
    command[1].write_text(yaml.safe_dump(recipe))
    made_with, step = [], FiniteTrainer.training_step

    def noted(self, *args, **kwargs):
        made_with.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(FiniteTrainer, "training_step", noted)
    run_script("train_language.py", *command)
    assert (output / "model.safetensors").exists()
    # Warming up linearly over 8 steps; steps 3 and 4 were left.
    assert made_with == [pytest.approx(1e-4 * 2 / 8), pytest.approx(1e-4 * 3 / 8)]
    states = [json.loads(path.read_text()) for path in (output / "checkpoints").glob("*/trainer_state.json")]
    history = max((state["log_history"] for state in states), key=len)
    rates = {entry["step"]: entry["learning_rate"] for entry in history if "learning_rate" in entry}
    assert [rates[3], rates[4]] == made_with


def test_codes_of_another_tokenizer_are_refused(work, seed_repository, tmp_path):
    write_codes(tmp_path / "codes.parquet", "f" * 64)
    command = arguments(tmp_path, seed_repository, "language_stage1", work / "text", tmp_path / "out")
    with pytest.raises(ValueError, match="codes.parquet: an image tokenizer with weights ffffffffffff"):
        run_script("train_language.py", *command)
    assert not (tmp_path / "out").exists()
