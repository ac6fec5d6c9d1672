"""What the training scripts share: pictures that do not open, where features are computed, how many processes."""

import io
import json
from types import SimpleNamespace

import PIL.Image
import PIL.ImageFile
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from seed import SeedImageProcessorPil, SeedModel
from seed.training import stage
from seed.training.datasets import PictureSource
from seed.training.recipes import StageRecipe
from seed.training.trainer import FiniteTrainer


def test_of_many_broken_pictures_the_report_counts_and_lists_the_first(tmp_path, capsys):
    rows = [{"image": {"bytes": None, "path": f"/nowhere/{row}.jpg"}, "captions": ["a dog"]} for row in range(300)]
    features = Features({"image": Image(decode=False), "captions": List(Value("string"))})
    assert stage._usable_rows(Dataset.from_list(rows, features=features)) == []
    lines = capsys.readouterr().out.splitlines()
    assert "300 skipped" in lines[0] and lines[1].split() == ["300", "x", "no", "such", "file"]
    assert "row 0, /nowhere/0.jpg" in lines[2] and len(lines) == 2 + 100 + 1


def test_no_picture_is_decoded_before_a_run(tmp_path, monkeypatch, capsys):
    """Files are looked for and headers are read; what is broken behind its header is found when its turn comes."""
    buffer = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).save(buffer, format="PNG")
    whole = buffer.getvalue()
    (tmp_path / "empty.png").touch()
    pictures = [
        {"bytes": whole, "path": None},
        {"bytes": whole[: len(whole) // 2], "path": None},
        {"bytes": b"no picture", "path": None},
        {"bytes": None, "path": str(tmp_path / "empty.png")},
        {"bytes": whole, "path": None},
    ]
    features = Features({"image": Image(decode=False), "captions": List(Value("string"))})
    captions = [["a"], ["b"], ["c"], ["d"], []]
    dataset = Dataset.from_dict({"image": pictures, "captions": captions}, features=features)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda *args: pytest.fail("decoded"))
    assert stage._usable_rows(dataset) == [0, 1]
    report = capsys.readouterr().out
    assert "1 x not an image that Pillow can read" in report and "1 x no bytes" in report
    assert "1 x no caption" in report


def test_first_embeddings_are_made_where_the_run_trains(tiny_seed_config, monkeypatch):
    """On the GPU, as a ViT-g takes hours for thousands elsewhere; a device without data stands for it."""
    monkeypatch.setattr(stage, "process_state", lambda: SimpleNamespace(device=torch.device("meta")))
    model = SeedModel(tiny_seed_config()).eval()
    source = PictureSource([["a"]] * 3, ["a"] * 3, images=[lambda: None] * 3)

    def collate(examples):
        return {"pixel_values": torch.zeros(len(examples), 3, 28, 28), "caption_ids": None}

    found = stage.first_embeddings(model, StageRecipe(epochs=1, training={}), collate, [source])
    assert found.is_meta and found.shape == (3, model.config.num_codes, model.config.qformer_config.hidden_size)


@pytest.mark.parametrize("way", ["fsdp", "deepspeed", "data parallel", "one"])
def test_a_model_that_is_split_or_copied_within_a_process_is_refused(way):
    trainer = SimpleNamespace(
        is_fsdp_enabled=way == "fsdp",
        is_deepspeed_enabled=way == "deepspeed",
        args=SimpleNamespace(n_gpu=2 if way == "data parallel" else 1),
    )
    if way == "one":
        FiniteTrainer.require_one_model_per_process(trainer)
        return
    with pytest.raises(ValueError, match="DDP, a process for each .*torchrun"):
        FiniteTrainer.require_one_model_per_process(trainer)


@pytest.mark.parametrize("own", [None, "height", "crop"])
def test_a_vision_model_brings_its_own_preprocessing(tiny_seed_config, tmp_path, own):
    """Its size, mean and deviation hold unless the recipe says otherwise."""
    config = tiny_seed_config()
    whole = SeedModel(config)
    whole.save_pretrained(tmp_path)  # of which the stage takes the vision model alone
    if own:
        square = {"height": 28, "width": 28}
        size = {"size": square} if own == "height" else {"size": {"shortest_edge": 32}, "crop_size": square}
        values = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | size))
    qformer = config.to_dict()["qformer_config"]
    recipe = StageRecipe(
        epochs=1,
        training={},
        model={"qformer_config": qformer},
        image_processor={"image_std": [0.25] * 3},
        vision_model=str(tmp_path),
    )
    processor = stage.make_image_processor(recipe)
    assert list(processor.image_std) == [0.25] * 3
    if own:
        assert list(processor.image_mean) == [0.1, 0.2, 0.3] and dict(processor.size) == {"height": 28, "width": 28}
    else:
        assert list(processor.image_mean) == SeedImageProcessorPil.image_mean and processor.size["height"] == 224
    model, _ = stage.create_model(recipe, vocab_size=40)
    expected, found = whole.vision_model.state_dict(), model.vision_model.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert model.config.qformer_config.vocab_size == 40
