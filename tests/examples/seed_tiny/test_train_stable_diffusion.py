"""The Stable Diffusion stand-in's training script, launched as a user launches it, on eight synthetic pictures."""

import importlib.util
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from toy_pictures import png

ROOT = Path(__file__).parents[3]
SMOKE = ROOT / "examples/recipes/stable_diffusion/smoke.yaml"


@pytest.fixture(scope="module")
def script():
    path = ROOT / "examples/seed_tiny/train_stable_diffusion.py"
    spec = importlib.util.spec_from_file_location("train_stable_diffusion", path)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(ROOT / "examples/seed_tiny"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = []
    for color in ("red", "green", "blue", "navy", "teal", "olive", "black", "gray"):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), color).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "captions": [f"{color} square", color]})
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def trained(script, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    script.main(["--recipe", str(SMOKE), "--data", str(data), "--validation", str(data), "--output", str(output)])
    return output


def test_several_processes_are_refused(script, data, tmp_path, monkeypatch):
    monkeypatch.setattr("seed.training.runs.process_state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="runs in one process, and 2 were started"):
        script.main(["--recipe", str(SMOKE), "--data", str(data), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_stock_pipeline_draws_from_a_caption(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "pipeline", local_files_only=True)
    assert pipeline.dtype == torch.float32 and pipeline.safety_checker is None
    draw = {"num_inference_steps": 2, "output_type": "np"}
    images = pipeline(["red square", "blue"], generator=torch.Generator().manual_seed(0), **draw).images
    assert images.shape == (2, 32, 32, 3)
    again = pipeline(["red square", "blue"], generator=torch.Generator().manual_seed(0), **draw).images
    assert (images == again).all()


def test_tokenizer_is_laid_out_as_clips(trained):
    tokenizer = StableDiffusionPipeline.from_pretrained(trained / "pipeline", local_files_only=True).tokenizer
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    assert tokenizer("", padding="max_length").input_ids == [start] + [end] * 76
    assert tokenizer("Red  SQUARE").input_ids == tokenizer("red square").input_ids
    saved = json.loads((trained / "pipeline/tokenizer/tokenizer.json").read_text())
    assert saved["padding"] is None and saved["truncation"] is None
    # Bytes never seen in training are spelled out, and no token is unknown (unknown would end the caption).
    ids = tokenizer("zq ÿ 漢").input_ids
    assert end not in ids[1:-1] and tokenizer.decode(ids[1:-1]) == "zq ÿ 漢"


def test_a_resumed_run_repeats_the_unbroken_one(script, data, trained, tmp_path):
    recipe = yaml.safe_load(SMOKE.read_text())
    for stage in ("vae", "decoder", "text", "unet"):
        recipe[stage]["steps"] = 1
    shorter = tmp_path / "shorter.yaml"
    shorter.write_text(yaml.safe_dump(recipe))
    for stage in ("vae", "decoder", "text", "unet"):
        for config in (shorter, SMOKE):
            script.main(["--recipe", str(config), "--data", str(data), "--output", str(tmp_path), "--stage", stage])
        unbroken = load_file(trained / f"{stage}.checkpoint.safetensors")
        resumed = load_file(tmp_path / f"{stage}.checkpoint.safetensors")
        assert unbroken.keys() == resumed.keys()
        for key, value in unbroken.items():
            torch.testing.assert_close(resumed[key], value, rtol=0, atol=0, msg=lambda m, key=key: f"{key}: {m}")


def test_a_run_that_resumes_keeps_its_vocabulary(script, data, tmp_path, monkeypatch):
    """Pieces that are equally frequent are chosen differently in each process; here the second start finds others."""
    arguments = ["--recipe", str(SMOKE), "--data", str(data), "--output", str(tmp_path / "out")]
    script.main(arguments)
    before = (tmp_path / "out/tokenizer/tokenizer.json").read_bytes()
    train = script.train_tokenizer
    monkeypatch.setattr(script, "train_tokenizer", lambda captions, size: train(["zebra zebras"] * 9, size))
    script.main(arguments)
    assert (tmp_path / "out/tokenizer/tokenizer.json").read_bytes() == before
    shutil.rmtree(tmp_path / "out/text_tokenizer")
    with pytest.raises(ValueError, match="text.checkpoint.* is of another run: it differs in vocabulary"):
        script.main(arguments)
    assert (tmp_path / "out/tokenizer/tokenizer.json").read_bytes() == before


def test_an_export_cut_short_is_made_again(script, data, tmp_path, monkeypatch):
    command = ["--recipe", str(SMOKE), "--data", str(data), "--output", str(tmp_path), "--stage", "vae"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as while_it_exports, pytest.raises(KeyboardInterrupt):
        while_it_exports.setattr(script, "save_atomically", killed)
        script.main(command)
    assert not (tmp_path / "vae").exists()
    script.main(command)
    assert (tmp_path / "vae" / "config.json").is_file()


def test_what_trained_on_another_vae_is_refused(script, data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    weights = tmp_path / "run" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["quant_conv.weight"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    command = ["--recipe", str(SMOKE), "--data", str(data), "--output", str(tmp_path / "run")]
    for stage in ("decoder", "unet"):
        with pytest.raises(ValueError, match=f"{stage}.checkpoint.safetensors is of another run.*VAE's encoder"):
            script.main([*command, "--stage", stage])


@pytest.mark.parametrize("differing", ["learning_rate", "data"])
def test_another_runs_checkpoint_is_refused(script, data, trained, tmp_path, differing):
    recipe, rows = yaml.safe_load(SMOKE.read_text()), pq.read_table(data).to_pylist()
    if differing == "data":
        rows[3]["captions"] = ["dark blue square"]
    else:
        recipe["vae"]["learning_rate"] = 0.5
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    before = (trained / "vae.checkpoint.safetensors").read_bytes()
    command = ["--recipe", str(tmp_path / "other.yaml"), "--data", str(tmp_path / "other.parquet")]
    with pytest.raises(ValueError, match=f"vae.checkpoint.safetensors is of another run: it differs in {differing}"):
        script.main([*command, "--output", str(trained), "--stage", "vae"])
    assert (trained / "vae.checkpoint.safetensors").read_bytes() == before


def test_a_cache_is_of_its_data(script, tmp_path):
    path = tmp_path / "cache.safetensors"
    first, second = torch.zeros(2), torch.ones(2)
    assert (script.cached(path, "one", lambda: first) == first).all()
    assert (script.cached(path, "one", lambda: second) == first).all(), "computed once"
    assert (script.cached(path, "another", lambda: second) == second).all()
    assert (script.cached(path, "another", lambda: first) == second).all()


@pytest.mark.parametrize("path", ["unet", "vae.model", "threadz"])
def test_unknown_recipe_key_is_named(script, tmp_path, path):
    recipe = yaml.safe_load(SMOKE.read_text())
    section = path.split(".")[0]
    if section in recipe:
        recipe[section]["captions_dropout"] = 0.1
    else:
        recipe[path] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="threadz" if section == "threadz" else f"{section}.captions_dropout"):
        script.load_recipe(tmp_path / "recipe.yaml")


def test_missing_column_is_named(script, tmp_path):
    pq.write_table(pa.table({"image": ["x"], "words": ["y"]}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="captions.*'image', 'words'|captions.*image, words"):
        script.load_pairs([tmp_path / "bad.parquet"])


def test_a_broken_picture_is_left_out_and_counted(script, tmp_path, capsys):
    rows = [{"image": {"bytes": png(Image.new("RGBA", (8, 8), color)), "path": None}, "captions": ["one", "two"]}
            for color in ("red", (0, 0, 0, 0))]  # fmt: skip
    rows.insert(1, {"image": {"bytes": b"no picture", "path": None}, "captions": ["broken"]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet")
    pairs = script.load_pairs([tmp_path / "some.parquet"])
    assert pairs.captions == [["one", "two"]] * 2 and pairs.images.shape == (2, 3, 8, 8)
    assert pairs.images[0, :, 0, 0].tolist() == [255, 0, 0]
    assert pairs.images[1].min() == 255, "what is transparent is white, as everywhere"
    assert "2 of 3 images used, 1 skipped" in capsys.readouterr().out
    pq.write_table(pa.Table.from_pylist(rows[1:2]), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="hold no picture that can be used"):
        script.load_pairs([tmp_path / "none.parquet"])
