"""Bad input of every kind that is to be expected, met where users meet it: the right thing, or an error that helps."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_repository import pictures

from seed import SeedModel, SeedPipeline
from seed.commands.main import main
from seed.data.tokenization import PictureList, load_image_tokenizer, tokenize_pictures
from seed.training.recipes import load_recipe

UNET = "decoder/unet/diffusion_pytorch_model.safetensors"
VAE = "decoder/vae/diffusion_pytorch_model.safetensors"
TOKENIZER = "image_tokenizer/model.safetensors"


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def tokenizer(seed_repository):
    return load_image_tokenizer(seed_repository)


@pytest.fixture
def repository(seed_repository, tmp_path):
    """A copy to damage."""
    return shutil.copytree(seed_repository, tmp_path / "model")


# Pictures ------------------------------------------------------------------------------------------------------------


def base() -> np.ndarray:
    """Grey quadrants, 40 x 40."""
    return np.kron(np.array([[10, 80], [160, 250]], np.uint8), np.ones((20, 20), np.uint8))


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    stored = Image.fromarray(np.rot90(base()).copy()).convert("RGB")
    stored.save(path, exif=exif)


def animated(path: Path) -> None:
    frames = [Image.fromarray(base()).convert("RGB"), Image.new("RGB", (40, 40), "red")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def transparent(path: Path) -> None:
    """The dark quadrant cannot be seen."""
    Image.merge("LA", [Image.fromarray(base()), Image.fromarray(np.where(base() == 10, 0, 255).astype(np.uint8))]).save(
        path
    )


UNUSUAL = {
    "one-pixel.png": lambda path: Image.new("RGB", (1, 1), (80, 80, 80)).save(path),
    "sixteen-bit.png": lambda path: Image.fromarray(base().astype(np.uint16) * 257).save(path),
    "cmyk.tif": lambda path: Image.fromarray(base()).convert("RGB").convert("CMYK").save(path),
    "animated.png": animated,
    "rotated.png": rotated,
    "transparent.png": transparent,
    "wide.png": lambda path: Image.fromarray(np.repeat(base(), 500, axis=1)).convert("RGB").save(path),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_have_the_codes_of_what_they_show(name, tokenizer, tmp_path):
    UNUSUAL[name](tmp_path / name)
    plain = Image.new("RGB", (1, 1), (80, 80, 80)) if name == "one-pixel.png" else Image.fromarray(base())
    if name == "wide.png":
        assert Image.open(tmp_path / name).size == (20_000, 40)
        plain = Image.fromarray(np.repeat(base(), 500, axis=1))  # the squash to a square sees the same steps
    if name == "transparent.png":
        plain = Image.fromarray(np.where(base() == 10, 255, base()))  # on white
    plain.convert("RGB").save(tmp_path / "plain.png")
    output = tmp_path / "codes.parquet"
    paths = PictureList([tmp_path / name, tmp_path / "plain.png"])
    # One at a time: a near-tie of two codes may fall either way at another place of a batch.
    assert tokenize_pictures(paths, output, *tokenizer, batch_size=1, progress=False).tokenized == 2
    unusual, plain = pq.read_table(output)["codes"].to_pylist()
    assert unusual == plain
    # The image processor, and with it every pipeline and processor, takes them as the command does.
    model, image_processor = tokenizer
    for source in (tmp_path / name, str(tmp_path / name), Image.open(tmp_path / name)):
        pixel_values = image_processor(source, return_tensors="pt")["pixel_values"]
        assert model.get_image_tokens(pixel_values).tolist() == [plain]


def test_rotation_and_frames_would_change_the_codes(tokenizer):
    """Else the test above could not fail."""
    model, image_processor = tokenizer
    turned = Image.fromarray(np.rot90(base()).copy()).convert("RGB")
    shown = [Image.fromarray(base()).convert("RGB"), turned, Image.new("RGB", (40, 40), "red")]
    codes = model.get_image_tokens(image_processor(shown, return_tensors="pt")["pixel_values"])
    assert len(codes.unique(dim=0)) == 3


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = {
    "text.png": b"<html>404 Not Found</html>",
    "empty.png": b"",
    "truncated.png": png(pictures(1)[0])[:80],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_one_clear_line(name, seed_repository, tmp_path, capsys):
    (tmp_path / name).write_bytes(BROKEN[name])
    assert run("reconstruct", tmp_path / name, "--output", tmp_path / "x.png", "--model", seed_repository) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"seed: error: {tmp_path / name}: ") and not (tmp_path / "x.png").exists()


def test_a_thousand_files_with_ten_broken_ones(seed_repository, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = [png(picture) for picture in pictures(50)]
    broken = set(range(50, 1000, 100))
    for number in range(1000):
        data = list(BROKEN.values())[number % 3] if number in broken else files[number % 50]
        (folder / f"{number:04d}.png").write_bytes(data)
    output = tmp_path / "codes.parquet"
    assert run("tokenize", folder, "--output", output, "--model", seed_repository, "--batch-size", 128) == 0
    shown = capsys.readouterr()
    table = pq.read_table(output)
    ids = [int(Path(id).stem) for id in table["id"].to_pylist()]
    assert ids == [number for number in range(1000) if number not in broken] and len(ids) == 990
    named = [json.loads(line)["id"] for line in (tmp_path / "codes.skipped.jsonl").read_text().splitlines()]
    assert named == [str(folder / f"{number:04d}.png") for number in sorted(broken)]
    assert "990 of 1000" in shown.out and all(name in shown.err for name in named)
    # Equal pictures have equal codes wherever they stand.
    codes = table["codes"].to_pylist()
    first = {number % 50: row for number, row in reversed(list(zip(ids, codes)))}
    assert all(row == first[number % 50] for number, row in zip(ids, codes))


# Codes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 32), 64), "Code 64 is out of range; this codebook has codes 0 .. 63"),
        (torch.full((1, 32), -1), "Code -1 is out of range"),
        (torch.zeros(1, 31, dtype=torch.long), r"shape \(1, 31\); expected \(batch, 32\)"),
        (torch.zeros(32, dtype=torch.long), r"shape \(32,\); expected \(batch, 32\)"),
        (torch.zeros(1, 32), "dtype torch.float32; expected integers"),
        (torch.zeros(1, 32, dtype=torch.bool), "dtype torch.bool; expected integers"),
    ],
)
def test_bad_codes(codes, message, tokenizer):
    with pytest.raises((ValueError, TypeError), match=message):
        tokenizer[0].decode_image_tokens(codes)


def test_a_bad_file_of_codes_is_one_clear_line(seed_repository, tmp_path, capsys):
    path = tmp_path / "codes.parquet"
    pq.write_table(pa.table({"codes": [[0] * 32, [0] * 31 + [99]]}), path)
    assert run("detokenize", path, "--output", tmp_path / "out", "--model", seed_repository) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"seed: error: {path}: code 99 in row 1, position 31, is out of range; ")
    assert "this model's codes are 0 .. 63" in error
    assert not (tmp_path / "out").exists()


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "image_tokenizer/config.json",
        "image_tokenizer/preprocessor_config.json",
        TOKENIZER,
        "decoder/model_index.json",
        "decoder/scheduler/scheduler_config.json",
        "decoder/unet/config.json",
        UNET,
        VAE,
    ],
)
def test_a_missing_file_is_named(name, repository):
    (repository / name).unlink()
    with pytest.raises(OSError) as raised:
        SeedPipeline.from_pretrained(repository)
    folder, _, file = name.rpartition("/")
    assert file in str(raised.value) and str(repository / folder) in str(raised.value)


@pytest.mark.parametrize("name", ["image_tokenizer", "decoder", "decoder/unet", "decoder/vae"])
def test_a_missing_folder_is_named(name, repository):
    shutil.rmtree(repository / name)
    with pytest.raises(FileNotFoundError, match=f"no folder '.*{Path(name).name}'"):
        SeedPipeline.from_pretrained(repository)


@pytest.mark.parametrize("name", [TOKENIZER, UNET, VAE])
def test_a_missing_tensor_is_named(name, repository):
    tensors = load_file(repository / name)
    lost = sorted(key for key in tensors if "word" not in key and "text" not in key)[7]
    del tensors[lost]
    save_file(tensors, repository / name, metadata={"format": "pt"})
    with pytest.raises(ValueError) as raised:
        SeedPipeline.from_pretrained(repository)
    assert "lacks 1 tensors of" in str(raised.value) and repr(lost) in str(raised.value)


@pytest.mark.parametrize("name", [TOKENIZER, UNET])
def test_a_truncated_file_is_named(name, repository, tmp_path, capsys):
    data = (repository / name).read_bytes()
    (repository / name).write_bytes(data[: len(data) // 2])
    pictures(1)[0].save(tmp_path / "in.png")
    assert run("reconstruct", tmp_path / "in.png", "--output", tmp_path / "x.png", "--model", repository) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str((repository / name).parent) in error and "download or copy it again" in error


def test_a_tensor_of_another_shape_is_named(repository):
    tensors = load_file(repository / TOKENIZER)
    tensors["quantizer.codebook.weight"] = torch.zeros(65, 8)
    save_file(tensors, repository / TOKENIZER, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"quantizer.codebook.weight' of \(65, 8\) instead of \(64, 8\)"):
        SeedModel.from_pretrained(repository / "image_tokenizer")


@pytest.mark.parametrize(
    "name", ["image_tokenizer/config.json", "image_tokenizer/preprocessor_config.json", "processor_config.json"]
)
def test_a_damaged_config_is_one_clear_line(name, repository, tmp_path, capsys):
    path = repository / name
    path.write_text(path.read_text()[:40])
    pictures(1)[0].save(tmp_path / "in.png")
    assert run("tokenize", tmp_path / "in.png", "--output", tmp_path / "x.parquet", "--model", repository) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("seed: error: ") and str(path) in error and "JSON" in error


def test_a_config_value_of_the_wrong_kind_is_one_clear_line(repository, tmp_path, capsys):
    path = repository / "image_tokenizer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebook_size": "many"}))
    pictures(1)[0].save(tmp_path / "in.png")
    assert run("tokenize", tmp_path / "in.png", "--output", tmp_path / "x.parquet", "--model", repository) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("seed: error: ") and "codebook_size" in error and "many" in error


# Recipes -------------------------------------------------------------------------------------------------------------

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"


@pytest.mark.parametrize("stage", ["qformer", "stage1", "stage2"])
@pytest.mark.parametrize("where", [(), ("data",)])
def test_an_unknown_key_of_a_recipe_is_named(stage, where, tmp_path):
    recipe = yaml.safe_load((RECIPES / stage / "smoke.yaml").read_text())
    section = recipe
    for key in where:
        section = section.setdefault(key, {})
    section["learning_rat"] = 1e-3
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="Unknown key 'learning_rat' in the recipe .*recipe.yaml.*expected some of"):
        load_recipe(path)
