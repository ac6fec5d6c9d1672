"""The three stages as scripts, end to end on toy pictures: run, resume with the same loss curve, hand on."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from makers.text_tokenizer import train_text_tokenizer
from PIL import Image, ImageDraw
from run_example import EXAMPLES, run_script
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from seed import SeedModel

COLOURS = ["red", "green", "blue", "black", "orange", "purple"]


def png(colour: str, shape: str) -> bytes:
    image = Image.new("RGB", (32, 32), "white")
    getattr(ImageDraw.Draw(image), shape)((6, 6, 26, 26), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Toy data (one picture that is none, one truncated), a text tokenizer, a toy Stable Diffusion text encoder."""
    folder = tmp_path_factory.mktemp("stages")
    rows = [
        {"image": {"bytes": png(colour, shape), "path": None}, "captions": [f"{colour} {shape}", f"a {shape}"]}
        for colour in COLOURS
        for shape in ("ellipse", "rectangle", "line")[:2]
    ] + [
        {"image": {"bytes": content, "path": None}, "captions": ["nothing"]}
        for content in (b"broken", png("red", "ellipse")[:90])
    ]
    Dataset.from_list(rows).to_parquet(folder / "data.parquet")
    captions = [caption for row in rows for caption in row["captions"]]
    train_text_tokenizer(captions, 200).save_pretrained(folder / "text_tokenizer")
    tokenizer = train_text_tokenizer(["red green ellipse"], 120)
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder / "sd" / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=200, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "sd" / "text_encoder")
    return folder


def losses(output: Path) -> dict[int, float]:
    last = max((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def run_and_resume(work: Path, script: str, stage: str, *extra: object) -> Path:
    """Runs a stage, and again from its first checkpoint only; both must end at the same weights. Returns its folder."""
    recipe = EXAMPLES / "recipes" / stage / "smoke.yaml"
    data = ("--data", work / "data.parquet", "--feature-cache", work / "features" / stage)
    whole, resumed = work / stage, work / f"{stage}-resumed"
    run_script(script, "--recipe", recipe, *data, "--output", whole, *extra)
    shutil.copytree(whole / "checkpoints" / "checkpoint-2", resumed / "checkpoints" / "checkpoint-2")
    (resumed / "checkpoints" / "checkpoint-3").mkdir()  # what a kill leaves of one
    run_script(script, "--recipe", recipe, *data, "--output", resumed, *extra)
    assert losses(whole).keys() == losses(resumed).keys() and len(losses(whole)) >= 3
    assert losses(whole) == losses(resumed)
    expected, found = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    return whole


def refuses_other_runs(work: Path, qformer: Path, stage1: Path, stage2: Path) -> None:
    """Another recipe, other data, other starting weights or targets; longer or shorter, it stays the same run."""
    rows = Dataset.from_parquet(str(work / "data.parquet")).to_list()
    rows[0]["captions"][0] = "magenta"
    Dataset.from_list(rows).to_parquet(work / "other.parquet")
    changed = {}
    for name in ("qformer", "stage1", "stage2"):
        path = changed[name] = work / f"{name}.yaml"
        smoke = (EXAMPLES / "recipes" / name / "smoke.yaml").read_text()
        assert "weight_decay" not in smoke
        path.write_text(smoke.replace("learning_rate: 1.0e-3", "learning_rate: 1.0e-3\n  weight_decay: 0.5"))
    other = {}
    for name, folder, changes in (
        ("init", qformer, "vision_projection.weight"),
        ("sd", work / "sd", "final_layer_norm"),
    ):
        other[name] = work / f"other-{name}"
        shutil.copytree(folder, other[name], ignore=shutil.ignore_patterns("checkpoints"))
        (weights,) = other[name].rglob("model.safetensors")
        tensors = load_file(weights)
        next(tensor for key, tensor in tensors.items() if changes in key).view(-1)[0] += 1
        save_file(tensors, weights, metadata={"format": "pt"})

    def run(script, output, init, decoder=None, recipe=None, data=work / "data.parquet"):
        recipe = recipe or EXAMPLES / "recipes" / output.name / "smoke.yaml"
        extra = ["--init", init] if init else ["--text-tokenizer", work / "text_tokenizer"]
        extra += ["--decoder", decoder] if decoder else []
        arguments = ["--data", data, "--feature-cache", work / "features" / output.name, "--max-steps", 2, *extra]
        run_script(script, "--recipe", recipe, "--output", output, *arguments)

    def refused(what: str):
        return pytest.raises(ValueError, match=rf"checkpoint-\d+ is of another run: it differs in {what}\. ")

    with refused("recipe.training.weight_decay"):
        run("train_qformer.py", qformer, None, recipe=changed["qformer"])
    with refused("data"):
        run("train_qformer.py", qformer, None, data=work / "other.parquet")
    with refused("model"):
        run("train_stage1.py", stage1, other["init"])
    with refused("text encoder"):
        run("train_stage2.py", stage2, stage1, other["sd"])
    with refused("recipe.training.weight_decay"):
        run("train_stage2.py", stage2, stage1, work / "sd", recipe=changed["stage2"])
    run("train_stage1.py", stage1, qformer)


def test_stages_run_resume_and_hand_on(work, capfd, monkeypatch):
    tokenizer = ["--text-tokenizer", work / "text_tokenizer"]
    qformer = run_and_resume(work, "train_qformer.py", "qformer", *tokenizer)
    output = capfd.readouterr().out
    assert "row 12" in output and "row 13" not in output, "what is no picture is reported before the run"
    assert "image of 90 bytes: truncated or damaged" in output and "(1 left out)" in output

    stage1 = run_and_resume(work, "train_stage1.py", "stage1", "--init", qformer)
    bidirectional, causal = SeedModel.from_pretrained(qformer), SeedModel.from_pretrained(stage1)
    assert not bidirectional.config.qformer_config.causal and causal.config.qformer_config.causal
    with pytest.raises(ValueError, match="stage I"):
        causal.get_image_tokens(torch.zeros(1, 3, 32, 32))

    with monkeypatch.context() as many_captions:
        many_captions.setattr("seed.training.text_features.KEPT_BYTES", 0)
        stage2 = run_and_resume(work, "train_stage2.py", "stage2", "--init", stage1, "--decoder", work / "sd")
    with monkeypatch.context() as resumed:  # the checkpoint has the codebook; to make it anew costs a ViT-g minutes
        resumed.setattr(
            "seed.SeedForQuantization.initialize_from_embeddings", lambda *args: pytest.fail("initialised again")
        )
        run_script("train_stage2.py", "--recipe", EXAMPLES / "recipes" / "stage2" / "smoke.yaml", "--init", stage1,
                   "--decoder", work / "sd", "--data", work / "data.parquet", "--output", stage2,
                   "--feature-cache", work / "features" / "stage2")  # fmt: skip
    few = work / "stage2-kept"
    run_script("train_stage2.py", "--recipe", EXAMPLES / "recipes" / "stage2" / "smoke.yaml", "--init", stage1,
               "--decoder", work / "sd", "--data", work / "data.parquet", "--output", few,
               "--feature-cache", work / "features" / "stage2")  # fmt: skip
    assert losses(few) == pytest.approx(losses(stage2), rel=1e-3), "keeping the features changes nothing"
    model = SeedModel.from_pretrained(stage2)
    assert model.config.generation_dim == 24 and model.config.has_empty_prompt_embeds
    before, after = causal.state_dict(), model.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, msg=f"stage II must not change {name}")
    encoder = CLIPTextModel.from_pretrained(work / "sd" / "text_encoder")
    refuses_other_runs(work, qformer, stage1, stage2)
    codes = model.get_image_tokens(torch.rand(2, 3, 32, 32))
    assert model.decode_image_tokens(codes).shape == (2, 77, encoder.config.hidden_size)


def test_two_processes_train_stages_as_one_does(work):
    """With half of each batch, two processes log the losses of one: negatives are gathered, gradients are averaged."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # drawn by each process for itself
    changes = {
        "stage1": {"model": {"qformer_config": {"causal": True} | still}},
        "stage2": {"model": {"reverse_qformer_config": still}, "head": {"kmeans_initialization": True}},
    }
    init = work / "alone"
    data = ["--data", work / "data.parquet", "--feature-cache", work / "features" / "alone"]
    smoke = EXAMPLES / "recipes" / "qformer" / "smoke.yaml"
    tokenizer = ["--text-tokenizer", work / "text_tokenizer"]
    run_script("train_qformer.py", "--recipe", smoke, *data, *tokenizer, "--max-steps", 1, "--output", init)
    for stage, extra in (("stage1", []), ("stage2", ["--decoder", work / "sd"])):
        recipe = yaml.safe_load((EXAMPLES / "recipes" / stage / "smoke.yaml").read_text()) | changes[stage]
        for processes in (1, 2):
            output = work / f"{stage}-processes-{processes}"
            output.mkdir()
            recipe["training"]["per_device_train_batch_size"] = 8 // processes
            (output / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            command = ["--recipe", output / "recipe.yaml", *data, "--init", init, *extra, "--output", output]
            if processes == 1:
                run_script(f"train_{stage}.py", *command)
            else:
                launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                script = EXAMPLES / f"train_{stage}.py"
                subprocess.run([sys.executable, *launch, script, *command], env=environment, check=True, timeout=300)
        with pytest.raises(ValueError, match="another run: it differs in examples per step"):  # as one process again
            run_script(f"train_{stage}.py", *command)
        with pytest.raises(ValueError, match="--max-steps is 0; expected 1 or more"):
            run_script(f"train_{stage}.py", *command, "--max-steps", 0)
        one, two = (losses(work / f"{stage}-processes-{processes}") for processes in (1, 2))
        assert len(one) >= 3 and two == pytest.approx(one, rel=2e-3)
        run_file = output / "run.json"  # of before it was remembered
        stored = json.loads(run_file.read_text())
        run_file.write_text(json.dumps({name: value for name, value in stored.items() if name != "examples per step"}))
        run_script(f"train_{stage}.py", *command)
        init = work / f"{stage}-processes-1"


def test_stages_start_in_float32_from_rounded_weights(work):
    """In bfloat16, which packaged tokenizers are, an update of 1e-3 of a weight is lost."""
    recipe = EXAMPLES / "recipes"
    data = ["--data", work / "data.parquet", "--max-steps", 2]
    folder = work / "rounded-qformer"
    run_script("train_qformer.py", "--recipe", recipe / "qformer" / "smoke.yaml", *data,
               "--text-tokenizer", work / "text_tokenizer", "--output", folder)  # fmt: skip
    for stage, extra in (("stage1", []), ("stage2", ["--decoder", work / "sd"])):
        SeedModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
        assert SeedModel.from_pretrained(folder).dtype == torch.bfloat16
        command = ["--recipe", recipe / stage / "smoke.yaml", *data, "--init", folder, *extra]
        folder = work / f"rounded-{stage}"
        run_script(f"train_{stage}.py", *command, "--output", folder)
        weights = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        trained = weights[{"stage1": "qformer.query_tokens", "stage2": "decode_layer.0.weight"}[stage]]
        assert (trained != trained.bfloat16().float()).any()
