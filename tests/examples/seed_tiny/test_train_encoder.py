"""The encoder's pretraining on a toy set and a toy EfficientNet: exact resumption, what is saved, and the measure."""

import io
import json
import random

import datasets
import numpy as np
import pytest
import torch
from makers.encoder.data import ConceptSteps, degrade, load_pictures
from makers.encoder.model import FoldedEncoder, pooled_features, style_loss
from makers.encoder.recipe import EncoderRecipe
from makers.text_tokenizer import train_text_tokenizer
from PIL import Image
from run_example import EXAMPLES, run_script
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, EfficientNetConfig, EfficientNetModel

from seed import SeedConfig, SeedImageProcessorPil, SeedModel
from seed.evaluation.efficientnet_lite import GATE_BIAS

SMOKE = EXAMPLES / "recipes" / "encoder" / "smoke.yaml"
COLORS = {"red apple": "red", "green leaf": "green", "blue sky": "blue", "black cat": "black"}


def toy_encoder():
    """A small EfficientNet with silenced squeeze-and-excite layers and batch norms that do something."""
    config = EfficientNetConfig(
        image_size=64, width_coefficient=1.0, depth_coefficient=1.0, hidden_act="relu6", hidden_dim=1280,
        in_channels=[32, 8], out_channels=[8, 16], kernel_sizes=[3, 5], strides=[1, 2], num_block_repeats=[1, 2],
        expand_ratios=[1, 2],
    )  # fmt: skip
    model = EfficientNetModel(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for block in model.encoder.blocks:
        for parameter in block.squeeze_excite.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(block.squeeze_excite.expand.bias, GATE_BIAS)
    return model


def write_table(path, names, styles, split="train"):
    rows = []
    for name in names:
        for style in styles:
            picture = np.asarray(Image.new("RGB", (24, 24), COLORS[name])).copy()
            picture[: 8 + 2 * len(style)] = 255
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            row = {"image": {"bytes": buffer.getvalue(), "path": None}, "captions": [name, f"a {name}"]}
            rows.append(row | {"style": style, "split": split})
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(path)


@pytest.fixture
def start(tmp_path):
    """Arguments of the script, all but --output."""
    write_table(tmp_path / "emoji.parquet", list(COLORS)[:3], ["flat", "drawn"])
    write_table(tmp_path / "icons.parquet", list(COLORS), ["icon"])
    write_table(tmp_path / "val.parquet", list(COLORS)[:3], ["lined"], split="val_style")
    toy_encoder().save_pretrained(tmp_path / "imagenet")
    size = {"height": 64, "width": 64}
    SeedImageProcessorPil(size=size).save_pretrained(tmp_path / "imagenet")
    train_text_tokenizer(list(COLORS), 120).save_pretrained(tmp_path / "tokenizer")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMOKE.read_text().replace("[3, 2]", "[3, 1]"))
    return (
        "--recipe", recipe, "--encoder", tmp_path / "imagenet", "--text-tokenizer", tmp_path / "tokenizer",
        "--data", tmp_path / "emoji.parquet", "--data", tmp_path / "icons.parquet", "--workers", 0,
    )  # fmt: skip


def test_a_killed_run_goes_on_exactly_and_gives_an_encoder_and_a_text_branch(start, tmp_path, monkeypatch, capsys):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_script("seed_tiny/train_encoder.py", *start, "--output", whole)
    get = ConceptSteps.__getitem__

    def killed_at_step_3(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return get(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ConceptSteps, "__getitem__", killed_at_step_3)
        run_script("seed_tiny/train_encoder.py", *start, "--output", resumed)
    assert (resumed / "snapshot" / "model.safetensors").is_file() and not (resumed / "model.safetensors").exists()
    run_script("seed_tiny/train_encoder.py", *start, "--output", resumed)
    for part in ("model.safetensors", "text_branch/model.safetensors"):
        expected, found = load_file(whole / part), load_file(resumed / part)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert tensor.equal(found[name]), name
    logs = [[json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (whole, resumed)]
    assert [[entry["loss"] for entry in log] for log in logs] == [[entry["loss"] for entry in logs[0]]] * 2

    # The encoder is a stock model whose silenced layers still are, and whose batch norms kept their statistics.
    before, after = (
        load_file(tmp_path / "imagenet" / "model.safetensors"),
        AutoModel.from_pretrained(whole).state_dict(),
    )
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert not any("squeeze_excite" in name or "running" in name for name in changed)
    assert {"embeddings.convolution.weight", "encoder.top_bn.bias"} <= changed

    # The text branch fills exactly what the image tokenizer keeps for words.
    settings = json.loads((whole / "text_branch" / "config.json").read_text())
    config = SeedConfig(
        vision_config=EfficientNetConfig().to_dict(), use_code_branch=False, decoder_num_heads=2, **settings
    )
    missing, unexpected = SeedModel(config).load_state_dict(
        load_file(whole / "text_branch" / "model.safetensors"), False
    )
    assert not unexpected
    assert not [
        name for name in missing if "text" in name or "word" in name or "position" in name or "self_attn" in name
    ]
    assert len(AutoTokenizer.from_pretrained(whole / "text_branch")) == settings["qformer_config"]["vocab_size"]

    capsys.readouterr()
    tables = {name: tmp_path / f"{name}.parquet" for name in ("emoji", "val")}
    run_script(
        "seed_tiny/evaluate_encoder.py", "--encoder", whole, "--train", tables["emoji"], "--style", tables["val"],
        "--concept", tables["emoji"],
    )  # fmt: skip
    assert json.loads(capsys.readouterr().out).keys() == {"val", "emoji"}


def test_a_checkpoint_of_another_run_and_evaluation_pictures_are_refused(start, tmp_path):
    run_script("seed_tiny/train_encoder.py", *start, "--output", tmp_path / "out")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "style_weight: 0.7\n")
    with pytest.raises(ValueError, match="of another run: it differs in style_weight"):
        run_script("seed_tiny/train_encoder.py", *start, "--output", tmp_path / "out")
    with pytest.raises(ValueError, match="rows of .'val_style'.; they are for evaluation"):
        load_pictures(tmp_path / "val.parquet")


def test_folding_batch_norms_changes_neither_features_nor_gradients():
    model = toy_encoder()
    folded = FoldedEncoder(model)
    pixels = torch.randn(2, 3, 64, 64)
    expected, found = pooled_features(model(pixels)), folded(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = (
        torch.autograd.grad(expected.square().sum(), weights),
        torch.autograd.grad(found.square().sum(), weights),
    )
    for mine, theirs in zip(*gradients):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    torch.nn.init.ones_(model.encoder.blocks[0].squeeze_excite.expand.weight)
    with pytest.raises(ValueError, match="only EfficientNet-Lite is supported"):
        FoldedEncoder(model)


def test_a_step_has_two_styles_of_each_concept_of_its_own_file(tmp_path):
    write_table(tmp_path / "emoji.parquet", list(COLORS)[:2], ["flat", "drawn"])
    write_table(tmp_path / "icons.parquet", list(COLORS), ["icon"])
    sources = [load_pictures(tmp_path / name) for name in ("emoji.parquet", "icons.parquet")]
    steps = ConceptSteps(sources, EncoderRecipe(steps=3, concepts=[1, 2], size=32))
    assert steps.names == [["green leaf", "red apple"], ["black cat", "blue sky"]]
    assert {picture.style for picture in steps.pictures["red apple"]} == {"flat", "drawn", "icon"}
    assert len({picture.style for picture in steps._pair("red apple", random.Random(0))}) == 2
    batch = steps[1]
    assert batch["images"].shape == (6, 32, 32, 3) and batch["images"].dtype == torch.uint8
    assert batch["groups"][::2].equal(batch["groups"][1::2]) and len(batch["groups"].unique()) == 3
    again = steps[1]
    assert again["images"].equal(batch["images"]) and again["captions"] == batch["captions"]
    with pytest.raises(ValueError, match="for 2 --data files, and 1 were given"):
        ConceptSteps(sources[:1], EncoderRecipe(steps=3, concepts=[1, 2]))
    with pytest.raises(ValueError, match="wants 3 concepts a step of a file that has 2"):
        ConceptSteps(sources, EncoderRecipe(steps=3, concepts=[3, 1]))


def test_degraded_pictures_stay_rgb_and_the_same_for_a_seed():
    image = Image.effect_noise((40, 40), 60).convert("RGB")
    views = [degrade(image, random.Random(seed)) for seed in range(60)]
    assert {view.mode for view in views} == {"RGB"}
    sizes = [view.width for view in views]
    assert min(sizes) < 40 < max(sizes)
    assert degrade(image, random.Random(3)).tobytes() == views[3].tobytes()


def test_the_style_loss_is_supervised_contrastive():
    features = torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.float64), dim=-1)
    groups = torch.tensor([0, 0, 1, 1])
    expected = 0.0
    for anchor, partner in ((0, 1), (1, 0), (2, 3), (3, 2)):
        logits = {other: (features[anchor] @ features[other] / 0.1).item() for other in range(4) if other != anchor}
        expected -= logits[partner] - np.log(sum(np.exp(value) for value in logits.values()))
    assert style_loss(features, groups, 0.1).item() == pytest.approx(expected / 4)
