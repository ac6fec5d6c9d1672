"""The fine-tuning example on random weights: it runs, it learns, and what it saves is a repository."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from run_example import EXAMPLES, run_script
from safetensors.torch import load_file
from tiny_language import make_language_repository
from tiny_repository import pictures

from seed import SeedPipeline


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, picture in enumerate(pictures(4)):
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a blip {number}\n")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("nothing\n")
    return folder


def test_fine_tuning_shows_before_and_after(tmp_path, data, capsys):
    make_language_repository(tmp_path / "seed")
    output = tmp_path / "tuned"
    recipe = EXAMPLES / "recipes" / "finetune" / "smoke.yaml"
    run_script(
        "finetune_lora.py", "--data", data, "--model", tmp_path / "seed", "--output", output, "--recipe", recipe,
        "--views", 2,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "4 of 5 images used, 1 skipped" in printed and "'a blip 3': was called" in printed
    sheet = np.asarray(Image.open(output / "before_after.png"))
    assert sheet.shape[2] == 3 and sheet.std() > 10
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "seed", output))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "visual_head.weight" in changed and "model.decoder.layers.0.fc1.weight" in changed
    assert "model.decoder.embed_tokens.weight" not in changed
    with pytest.raises(ValueError, match="is the folder of the model that is trained on"):
        run_script("finetune_lora.py", "--data", data, "--model", output, "--output", output)
    pipeline = SeedPipeline.from_pretrained(output, language_model=True)
    assert len(pipeline(prompt="a blip 1", num_inference_steps=1).images) == 1


def test_pictures_of_a_table_lie_where_image_root_says(tmp_path, data, capsys):
    make_language_repository(tmp_path / "seed")
    rows = [{"image": f"{number}.png", "captions": [f"a blip {number}"]} for number in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    recipe = EXAMPLES / "recipes" / "finetune" / "smoke.yaml"
    run_script(
        "finetune_lora.py", "--data", tmp_path / "table.parquet", "--image-root", data, "--views", 1,
        "--model", tmp_path / "seed", "--output", tmp_path / "tuned", "--recipe", recipe,
    )  # fmt: skip
    assert "2 of 2 images used" in capsys.readouterr().out


def test_the_recipe_says_in_what_dtype_the_frozen_weights_are(tmp_path, data):
    make_language_repository(tmp_path / "seed")
    recipe = tmp_path / "recipe.yaml"
    smoke = (EXAMPLES / "recipes" / "finetune" / "smoke.yaml").read_text()
    recipe.write_text(smoke.replace("training:", "dtype: bfloat16\ntraining:\n  bf16: true"))
    output = tmp_path / "tuned"
    run_script(
        "finetune_lora.py", "--data", data, "--model", tmp_path / "seed", "--output", output, "--recipe", recipe,
        "--views", 1,
    )  # fmt: skip
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.bfloat16}
