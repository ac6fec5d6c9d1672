"""Bulk tokenisation: the model's own codes in the pictures' order; broken ones named; kills cost nothing."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_repository import make_seed_pipeline, pictures

from seed import SeedModel
from seed.commands.main import main
from seed.data import detokenization, tokenization
from seed.data.codes import CodesMetadata, codes_schema, read_codes
from seed.data.detokenization import draw_codes, open_codes
from seed.data.tokenization import PictureList, load_image_tokenizer, tokenize_pictures


@pytest.fixture(scope="module")
def tokenizer(seed_repository):
    return load_image_tokenizer(seed_repository)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty pictures; numbers 3, 4 and 20 are broken in different ways."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures(30)):
        picture.save(folder / f"{number:02d}.png")
    (folder / "03.png").write_bytes(b"not a picture")
    (folder / "04.png").write_bytes(b"")
    (folder / "20.png").write_bytes((folder / "21.png").read_bytes()[:60])
    return folder


def expected_codes(tokenizer, paths):
    """One picture at a time, straight from the model."""
    model, image_processor = tokenizer
    pixels = [image_processor(Image.open(path), return_tensors="pt")["pixel_values"] for path in paths]
    with torch.no_grad():
        return torch.cat([model.get_image_tokens(pixel_values) for pixel_values in pixels])


class Killed(BaseException):
    pass


def kill_after(monkeypatch, model, batches):
    """The model works for so many batches, then the process dies; returns the sizes of the batches it did."""
    sizes, get_image_tokens = [], model.get_image_tokens

    def counted(pixel_values):
        if len(sizes) == batches:
            raise Killed
        sizes.append(len(pixel_values))
        return get_image_tokens(pixel_values)

    monkeypatch.setattr(model, "get_image_tokens", counted)
    return sizes


def test_codes_of_a_folder(tokenizer, folder, tmp_path):
    output = tmp_path / "codes.parquet"
    summary = tokenize_pictures(PictureList([folder]), output, *tokenizer, batch_size=8, progress=False)
    broken = [folder / name for name in ("03.png", "04.png", "20.png")]
    good = [path for path in sorted(folder.iterdir()) if path not in broken]
    table = pq.read_table(output)
    assert table.column_names == ["id", "codes"] and table["id"].to_pylist() == [str(path) for path in good]
    codes = torch.tensor(table["codes"].to_pylist())
    assert torch.equal(codes, expected_codes(tokenizer, good)) and len(codes.unique(dim=0)) > 3

    assert summary.tokenized == 27 and summary.skipped_file == tmp_path / "codes.skipped.jsonl"
    listed = [json.loads(line) for line in summary.skipped_file.read_text().splitlines()]
    assert [(entry["row"], entry["id"]) for entry in listed] == list(zip((3, 4, 20), map(str, broken)))
    assert "not an image" in listed[0]["error"] and "empty" in listed[1]["error"] and "truncated" in listed[2]["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.parquet", "codes.skipped.jsonl"]

    metadata = json.loads(pq.read_schema(output).metadata[b"seed"])
    assert metadata.pop("image_tokenizer") == tokenizer[0].codes_hash() and len(metadata.pop("preprocessing")) == 64
    assert metadata == {"dtype": "float32", "codebook_size": 64, "num_codes": 32}


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_killed_run_continues_without_loss_or_repetition(tokenizer, folder, tmp_path, monkeypatch, batches):
    monkeypatch.setattr(tokenization, "ROWS_PER_PART", 8)
    output = tmp_path / "codes.parquet"
    whole = tmp_path / "whole.parquet"
    tokenize_pictures(PictureList([folder]), whole, *tokenizer, batch_size=4, progress=False)
    with monkeypatch.context() as patch:
        kill_after(patch, tokenizer[0], batches)
        with pytest.raises(Killed):
            tokenize_pictures(PictureList([folder]), output, *tokenizer, batch_size=4, progress=False)
    assert not output.exists()
    # As a kill in the middle of a write leaves it.
    (tmp_path / "codes.parquet.partial" / ".0000000024.tmp.parquet").write_bytes(b"half")
    with monkeypatch.context() as patch:
        sizes = kill_after(patch, tokenizer[0], 1000)
        summary = tokenize_pictures(PictureList([folder]), output, *tokenizer, batch_size=4, progress=False)
    # Batches of four rows, parts of eight: what finished parts hold is not computed again.
    assert summary.continued_from == batches // 2 * 8
    usable = 27 - sum(number not in (3, 4, 20) for number in range(summary.continued_from))
    assert sum(sizes) == usable
    assert pq.read_table(output).equals(pq.read_table(whole))
    assert not (tmp_path / "codes.parquet.partial").exists()

    # A third time there is nothing to do.
    kill_after(monkeypatch, tokenizer[0], 0)
    again = tokenize_pictures(PictureList([folder]), output, *tokenizer, batch_size=4, progress=False)
    assert again.tokenized == 27 and len(again.skipped) == 3 and again.continued_from == 30


def test_leftovers_of_another_run_are_refused(tokenizer, folder, tmp_path, monkeypatch):
    output = tmp_path / "codes.parquet"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, tokenizer[0], 1)
        tokenize_pictures(PictureList([folder]), output, *tokenizer, batch_size=4, progress=False)
    with pytest.raises(ValueError, match="unfinished run with another pictures. .* delete that folder"):
        tokenize_pictures(PictureList([folder / "00.png"]), output, *tokenizer, progress=False)
    bfloat16 = SeedModel(tokenizer[0].config).to(torch.bfloat16).eval()
    with pytest.raises(ValueError, match="another dtype, image_tokenizer. "):
        tokenize_pictures(PictureList([folder]), output, bfloat16, tokenizer[1], progress=False)
    shutil.rmtree(tmp_path / "codes.parquet.partial")

    tokenize_pictures(PictureList([folder / "00.png"]), output, *tokenizer, progress=False)
    with pytest.raises(ValueError, match="exists and holds codes of other pictures .*delete it"):
        tokenize_pictures(PictureList([folder]), output, *tokenizer, progress=False)
    output.write_text("something else")
    with pytest.raises(ValueError, match="name another file"):
        tokenize_pictures(PictureList([folder]), output, *tokenizer, progress=False)
    assert output.read_text() == "something else"


def test_nothing_usable_is_an_error(tokenizer, folder, tmp_path):
    with pytest.raises(ValueError, match="None of the 2 pictures could be opened; see .*x.skipped.jsonl"):
        paths = PictureList([folder / "03.png", folder / "04.png"])
        tokenize_pictures(paths, tmp_path / "x.parquet", *tokenizer, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x.skipped.jsonl"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_a_file_name_that_is_not_utf8_is_spelt_out(tokenizer, folder, tmp_path):
    """Once a broken picture, once a good one."""
    for name, source in ((b"\xfe.png", "03.png"), (b"\xff.png", "00.png")):
        (tmp_path / os.fsdecode(name)).write_bytes((folder / source).read_bytes())
    output = tmp_path / "codes.parquet"
    summary = tokenize_pictures(PictureList([tmp_path]), output, *tokenizer, progress=False)
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [f"{tmp_path}/\\udcff.png"]
    assert table["codes"].to_pylist() == expected_codes(tokenizer, [folder / "00.png"]).tolist()
    ((row, id, error),) = summary.skipped
    assert row == 0 and id == f"{tmp_path}/\\udcfe.png" and error.startswith(id)


def test_image_text_data_keep_ids_and_captions(tokenizer, folder, tmp_path):
    rows = []
    for number in (0, 3, 1):
        image = {"bytes": (folder / f"{number:02d}.png").read_bytes(), "path": None}
        rows.append({"image": image, "captions": [f"picture {number}", "noise"], "id": f"n{number}"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    pq.write_table(pa.Table.from_pylist(rows).drop_columns("id"), tmp_path / "numbered.parquet")
    expected = expected_codes(tokenizer, [folder / "00.png", folder / "01.png"]).tolist()
    for name, ids in (("data", ["n0", "n1"]), ("numbered", ["0", "2"])):
        output = tmp_path / f"{name}.codes.parquet"
        tokenize_pictures(PictureList([tmp_path / f"{name}.parquet"]), output, *tokenizer, progress=False)
        table = pq.read_table(output)
        assert table["id"].to_pylist() == ids and table["codes"].to_pylist() == expected
        assert table["captions"].to_pylist() == [["picture 0", "noise"], ["picture 1", "noise"]]
    with pytest.raises(ValueError, match="one by one"):
        PictureList([tmp_path / "data.parquet", folder])


def test_a_split_of_image_text_data(folder, tmp_path):
    entries = [
        {"filename": f"{number:02d}.png", "split": split, "sentences": [{"raw": split}]}
        for number, split in enumerate(["train", "val", "train"])
    ]
    data = tmp_path / "dataset_coco.json"
    data.write_text(json.dumps({"images": entries}))
    with pytest.raises(ValueError, match="has several splits; pass split, one of train, val"):
        PictureList([data], folder)
    train, val = (PictureList([data], folder, split) for split in ("train", "val"))
    assert [train[0].id, train[1].id, val[0].id] == ["00.png", "02.png", "01.png"] and (len(train), len(val)) == (2, 1)
    assert train.fingerprint != val.fingerprint
    with pytest.raises(ValueError, match="split is 'train', but .*pictures.*has no splits"):
        PictureList([folder], split="train")


@pytest.mark.parametrize("name", ["photos.tsv000", "photos.csv000"])
def test_unsplash_numbers_its_tables(folder, tmp_path, name):
    table = tmp_path / name
    table.write_text("photo_id\tphoto_image_url\tphoto_description\n05\thttps://i/5\ta dog\n")
    rows = PictureList([table], image_root=folder)
    assert (rows[0].id, rows[0].source["path"], rows[0].captions) == ("05", str(folder / "05.png"), ["a dog"])


@pytest.mark.parametrize("kind", ["sidecars", "metadata"])
def test_captions_beside_pictures_are_kept(tokenizer, folder, tmp_path, kind):
    """Or a language model could not be trained on the codes of a folder that every stage before reads."""
    (tmp_path / "in").mkdir()
    for number in (5, 6, 7):
        shutil.copy(folder / f"{number:02d}.png", tmp_path / "in")
    if kind == "sidecars":
        (tmp_path / "in" / "05.txt").write_text("a dog\nsome dog\n")
        (tmp_path / "in" / "07.txt").write_text("a cat")
    else:
        rows = [{"file_name": "05.png", "caption": "a dog"}, {"file_name": "07.png", "caption": "a cat"}]
        (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = PictureList([tmp_path / "in"])
    tokenize_pictures(found, tmp_path / "codes.parquet", *tokenizer, progress=False)
    table = pq.read_table(tmp_path / "codes.parquet")
    # A picture without captions has codes all the same.
    dog = ["a dog", "some dog"] if kind == "sidecars" else ["a dog"]
    assert table["captions"].to_pylist() == [dog, [], ["a cat"]]
    paths = [folder / f"{number:02d}.png" for number in (5, 6, 7)]
    assert table["codes"].to_pylist() == expected_codes(tokenizer, paths).tolist()
    assert table["id"].to_pylist() == [str(tmp_path / "in" / path.name) for path in paths]
    (tmp_path / "in" / "06.txt").write_text("a cow")
    assert PictureList([tmp_path / "in"]).fingerprint != found.fingerprint
    assert PictureList([tmp_path / "in"])[1].captions == ["a cow"]


def test_metadata_of_something_else_are_passed_over(folder, tmp_path, caplog):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "05.png", tmp_path / name)
    (tmp_path / "one" / "metadata.csv").write_text("name,size\n05.png,12\n")
    found = PictureList([tmp_path / "one", tmp_path / "two"])
    assert len(found) == 2 and not found.has_captions and found[0].captions is None
    assert "metadata.csv" in caplog.text and "Captions are not taken from there" in caplog.text
    (tmp_path / "two" / "metadata.csv").write_text("file_name,caption\n05.png,a dog\n")
    found = PictureList([tmp_path / "one", tmp_path / "two"])
    assert [picture.captions for picture in found] == [[], ["a dog"]]


def test_hash_follows_what_makes_codes_and_nothing_else(seed_repository, tokenizer):
    folder = seed_repository / "image_tokenizer"
    ours = tokenizer[0].codes_hash()
    with_text = SeedModel.from_pretrained(folder)
    assert with_text.config.use_text_branch and not tokenizer[0].config.use_text_branch
    assert with_text.codes_hash() == ours
    model = SeedModel.from_pretrained(folder, dtype=torch.bfloat16)
    in_bfloat16 = model.codes_hash()
    assert in_bfloat16 != ours and model.float().codes_hash() == in_bfloat16
    model = SeedModel.from_pretrained(folder)
    with torch.no_grad():
        model.generation_projection.bias += 1
        assert model.codes_hash() == ours
        for name in ("quantizer.codebook.weight", "encode_layer.0.bias", "qformer.query_tokens"):
            parameter = model.get_parameter(name)
            parameter.view(-1)[0] += 1e-3
            assert model.codes_hash() != ours, name
            parameter.copy_(tokenizer[0].get_parameter(name))


@pytest.fixture
def codes_file(tmp_path, tokenizer):
    """Writes a file of codes; `metadata=None` leaves out what made them."""

    made_by = CodesMetadata.of(*tokenizer)

    def write(codes, value_type=None, metadata=made_by, name="made.parquet"):
        schema = codes_schema(metadata, with_captions=False) if metadata else None
        column = pa.array(codes, value_type or pa.list_(pa.int32()))
        table = pa.table({"id": [f"a/b {row}.jpg" for row in range(len(codes))], "codes": column})
        pq.write_table(table.replace_schema_metadata(schema.metadata if schema else None), tmp_path / name)
        return tmp_path / name

    return write


def test_bad_codes_name_file_row_and_value(codes_file, tmp_path):
    good = [list(range(32)), list(range(32, 64))]
    assert read_codes(codes_file(good), 64, 32).codes.tolist() == good
    assert read_codes(codes_file(good, pa.list_(pa.uint16(), 32)), 64, 32).codes.tolist() == good
    for ids, expected in (([None, "a"], ["row 0", "a"]), ([5, None], ["5", "row 1"]), ([[1], [2]], ["[1]", "[2]"])):
        pq.write_table(pa.table({"id": ids, "codes": good}), tmp_path / "ids.parquet")
        assert read_codes(tmp_path / "ids.parquet", 64, 32).ids == expected
    cases = [
        ([good[0], good[1][:31]], None, r"made.parquet: row 1 has 31 codes; this model's pictures have 32"),
        ([good[0], None], None, "row 1 has 0 codes"),
        ([good[0], [*range(31), 64]], None, "made.parquet: code 64 in row 1, position 31, is out of range; .*0 .. 63"),
        ([good[0], [-1] + good[1][1:]], None, "code -1 in row 1, position 0"),
        ([good[0], [None] + good[1][1:]], None, "code -1 in row 1, position 0"),
        ([[0.5] * 32], pa.list_(pa.float32()), "column 'codes' holds list<.*float>; expected lists of 32 integers"),
        ([3], pa.int64(), "column 'codes' holds int64; expected lists of 32 integers"),
    ]
    for codes, kind, message in cases:
        with pytest.raises(ValueError, match=message):
            read_codes(codes_file(codes, kind), 64, 32)
    pq.write_table(pa.table({"tokens": [1], "id": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no column 'codes'; it has tokens, id"):
        read_codes(tmp_path / "other.parquet", 64, 32)
    (tmp_path / "cut.parquet").write_bytes(codes_file(good).read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.parquet: not a Parquet file, or a truncated one"):
        read_codes(tmp_path / "cut.parquet", 64, 32)
    with pytest.raises(FileNotFoundError, match="nothing.parquet"):
        read_codes(tmp_path / "nothing.parquet", 64, 32)


def test_codes_are_drawn_row_by_row(codes_file, tmp_path):
    pipeline = make_seed_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    codes = torch.randint(0, 64, (3, 32))
    paths = draw_codes(pipeline, open_codes(codes_file(codes.tolist()), pipeline), tmp_path / "out", 5, batch_size=2)
    assert [path.name for path in paths] == ["0-b_0.png", "1-b_1.png", "2-b_2.png"]
    assert sorted((tmp_path / "out").iterdir()) == paths
    for row, path in enumerate(paths):
        generator = torch.Generator().manual_seed(5 + row)
        drawn = pipeline(codes=codes[row : row + 1], generator=generator).images[0]
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(drawn, int)).max() <= 1


def test_drawing_goes_on_after_a_kill(codes_file, tmp_path, monkeypatch):
    pipeline = make_seed_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    codes = open_codes(codes_file(torch.randint(0, 64, (4, 32)).tolist()), pipeline)
    whole = draw_codes(pipeline, codes, tmp_path / "whole", seed=5)
    folder, drawn = tmp_path / "killed", []

    def saves_until_killed(image, path, save=detokenization.save_image):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(path)
        save(image, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(detokenization, "save_image", saves_until_killed)
        draw_codes(pipeline, codes, folder, seed=5)
    written = [path.stat().st_mtime_ns for path in drawn]
    again = draw_codes(pipeline, codes, folder, seed=5, batch_size=1)
    assert [path.stat().st_mtime_ns for path in drawn] == written  # not drawn twice
    for path, expected in zip(again, whole):
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(Image.open(expected), int)).max() <= 1
    assert sorted(folder.iterdir()) == again  # nothing but drawings is left

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        drawn.clear()
        patch.setattr(detokenization, "save_image", saves_until_killed)
        draw_codes(pipeline, codes, folder, seed=6)  # a finished run's drawings are no start for another seed
    draw_codes(pipeline, codes, tmp_path / "other", seed=6)
    draw_codes(pipeline, codes, folder, seed=6)  # not even where that one was killed
    for path in again:
        other = Image.open(tmp_path / "other" / path.name)
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(other, int)).max() <= 1
    draw_codes(pipeline, codes, folder, seed=5)
    for path, expected in zip(again, whole):
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(Image.open(expected), int)).max() <= 1


def test_codes_of_another_tokenizer_are_refused(codes_file):
    pipeline = make_seed_pipeline()
    codes = [list(range(32))]
    path = codes_file(codes)
    with torch.no_grad():
        pipeline.image_tokenizer.quantizer.codebook.weight[0] += 1
    with pytest.raises(ValueError, match="an image tokenizer with weights .* made these codes; .*--force"):
        open_codes(path, pipeline)
    assert open_codes(path, pipeline, any_tokenizer=True).codes.tolist() == codes
    assert open_codes(codes_file(codes, metadata=None), pipeline).codes.tolist() == codes


def test_loads_as_a_data_set(tokenizer, folder, tmp_path):
    from datasets import load_dataset

    output = tmp_path / "codes.parquet"
    tokenize_pictures(PictureList([folder / "00.png", folder / "01.png"]), output, *tokenizer, progress=False)
    loaded = load_dataset("parquet", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache"))
    expected = expected_codes(tokenizer, [folder / "00.png", folder / "01.png"])
    assert torch.equal(torch.tensor(loaded["codes"][:]), expected)


def test_tokenising_does_not_import_diffusers():
    """It takes seconds."""
    code = "import sys, seed.data.tokenization; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "seed.modeling_seed" in modules and not {"diffusers", "seed.pipeline_seed"} & set(modules)


def test_images_bytes_of_every_kind(tokenizer, tmp_path):
    """One picture as PNG, palette PNG, 16-bit PNG and CMYK TIFF has one set of codes."""
    grey = Image.fromarray(np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((20, 20), np.uint8)))
    kinds = {
        "rgb.png": grey.convert("RGB"),
        "palette.png": grey.convert("P"),
        "deep.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "print.tif": grey.convert("RGB").convert("CMYK"),
    }
    for name, image in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, "TIFF" if name.endswith("tif") else "PNG")
        (tmp_path / name).write_bytes(buffer.getvalue())
    output = tmp_path / "codes.parquet"
    tokenize_pictures(PictureList([tmp_path / name for name in kinds]), output, *tokenizer, progress=False)
    codes = pq.read_table(output)["codes"].to_pylist()
    assert codes == [codes[0]] * 4


def test_pictures_of_a_table_that_come_later_are_other_pictures(tokenizer, folder, tmp_path, capsys):
    """A download goes on between two runs: what is there is another set, and positions mean other pictures."""
    root = tmp_path / "images"
    root.mkdir()
    table = tmp_path / "cc3m.tsv"
    table.write_text("".join(f"a picture\thttps://i/{number}.png\n" for number in range(6)))
    for number in (0, 2, 5):
        shutil.copy(folder / f"{number:02d}.png", root / f"{number}.png")
    output = tmp_path / "codes.parquet"
    pictures_now = PictureList([table], image_root=root)
    assert (len(pictures_now), pictures_now.not_downloaded) == (3, 3)
    tokenize_pictures(pictures_now, output, *tokenizer, progress=False)
    assert tokenize_pictures(PictureList([table], image_root=root), output, *tokenizer, progress=False).tokenized == 3
    table_of = pq.read_table(output)  # as versions wrote it that did not remember the pictures' own files
    run = json.loads(table_of.schema.metadata[tokenization.RUN_KEY])
    del run["picture_files"]
    older = table_of.schema.metadata | {tokenization.RUN_KEY: json.dumps(run)}
    pq.write_table(table_of.replace_schema_metadata(older), output)
    assert tokenize_pictures(PictureList([table], image_root=root), output, *tokenizer, progress=False).tokenized == 3
    pq.write_table(table_of, output)
    shutil.copy(folder / "01.png", root / "1.png")
    with pytest.raises(ValueError, match="codes of other pictures"):
        tokenize_pictures(PictureList([table], image_root=root), output, *tokenizer, progress=False)
    assert main(["tokenize", str(table), "--image-root", str(root), "--output", str(output)]) != 0
    assert "2 pictures that the table names were never downloaded" in capsys.readouterr().out


def test_a_folder_of_shards_is_data(tokenizer, folder, tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as archive:
            for number in (5 + shard, 7 + shard):
                archive.add(folder / f"{number:02d}.png", f"{number:02d}.png")
    found = PictureList([tmp_path / "shards"])
    assert found.has_captions and [picture.id for picture in found] == ["05", "07", "06", "08"]
    fingerprint = found.fingerprint
    os.utime(tmp_path / "shards" / "1.tar", (0, 0))
    assert PictureList([tmp_path / "shards"]).fingerprint != fingerprint
    rows = {"image": [(folder / "05.png").read_bytes()], "captions": [["x"]]}
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "tables" / "a.parquet")
    output = tmp_path / "tables" / "codes.parquet"
    tokenize_pictures(PictureList([tmp_path / "tables"]), output, *tokenizer, progress=False)
    with pytest.raises(ValueError, match="holds data and, in .*codes.parquet, codes"):
        PictureList([tmp_path / "tables"])


def test_links_are_followed_and_broken_ones_named(tokenizer, folder, tmp_path):
    root = tmp_path / "linked"
    root.mkdir()
    (root / "more").symlink_to(folder, target_is_directory=True)
    (root / "back").symlink_to(root, target_is_directory=True)
    (root / "lost.png").symlink_to(root / "nowhere.png")
    shutil.copy(folder / "05.png", root / "a.jfif")
    found = PictureList([root])
    assert len(found) == 32
    (root / "again").symlink_to(root / "sub", target_is_directory=True)
    (root / "sub").mkdir()
    shutil.copy(folder / "06.png", root / "sub" / "b.png")
    os.mkfifo(root / "pipe.png")
    names = [picture.id for picture in PictureList([root])]
    assert str(root / "sub" / "b.png") in names and not any("again" in name or "pipe" in name for name in names)
    summary = tokenize_pictures(found, tmp_path / "codes.parquet", *tokenizer, progress=False)
    assert summary.tokenized == 28 and any(name.endswith("lost.png") for _, name, _ in summary.skipped)
