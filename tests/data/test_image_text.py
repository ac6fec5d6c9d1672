"""Every published form of image-text pairs loads into one schema, local and streamed; broken pictures are counted."""

import csv
import hashlib
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from PIL import Image as PILImage

from seed.data import SchemaError, SkipReport, image_text, iter_valid, load_image_text

COLORS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


def png(color):
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4), COLORS[color]).save(buffer, "PNG")
    return buffer.getvalue()


def save(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(color))


def contents(dataset):
    """{caption list as a tuple: colour of the picture}, and a check of the schema on the way."""
    assert dataset.features["image"] == Image(decode=False)
    assert dataset.features["captions"] == List(Value("string"))
    report = SkipReport()
    found = {tuple(example["captions"]): example["image"].getpixel((1, 1)) for example in iter_valid(dataset, report)}
    assert report.skipped == 0, report.summary()
    names = {color: name for name, color in COLORS.items()}
    return {captions: names[pixel] for captions, pixel in found.items()}


both_ways = pytest.mark.parametrize("streaming", [False, True])


def write_parquet(path, captions, image_type="struct", **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = list(COLORS)[: len(captions)]
    pictures = [png(color) for color in colors]
    if image_type == "struct":
        pictures = [{"bytes": data, "path": None} for data in pictures]
    pq.write_table(pa.table({"image": pictures, "captions": captions, **extra}), path)


@both_ways
def test_parquet_file(tmp_path, streaming):
    write_parquet(tmp_path / "a.parquet", [["a rose", "red"], ["grass"]], score=[0.5, 1.0], id=[7, 8])
    dataset = load_image_text(tmp_path / "a.parquet", streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert contents(dataset) == {("a rose", "red"): "red", ("grass",): "green"}
    examples = list(dataset)
    assert [example["score"] for example in examples] == [0.5, 1.0]
    assert [example["id"] for example in examples] == ["7", "8"]


@both_ways
def test_parquet_with_single_captions_and_raw_bytes(tmp_path, streaming):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"jpg": [png("red"), png("blue")], "caption": ["a rose", "the sky"], "n": [1, 2]}), path)
    dataset = load_image_text(str(path), streaming=streaming)
    assert contents(dataset) == {("a rose",): "red", ("the sky",): "blue"}
    assert sorted(dataset.column_names) == ["captions", "image", "n"]


@both_ways
def test_parquet_written_by_datasets_with_other_column_names(tmp_path, streaming):
    features = Features(
        {"picture": Image(), "title": Value("string"), "note": Value("string"), "captions": Value("int64")}
    )
    rows = {
        "picture": [{"bytes": png("green"), "path": None}],
        "title": ["grass"],
        "note": [" a lawn "],
        "captions": [3],
    }
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    columns = {"image": "picture", "captions": ["title", "note"]}
    dataset = load_image_text(tmp_path / "a.parquet", streaming=streaming, columns=columns)
    assert contents(dataset) == {("grass", "a lawn"): "green"}


def test_parquet_splits(tmp_path):
    for name, captions in {"train-00000-of-00002": ["a"], "train-00001-of-00002": ["b"], "val_style": ["c"]}.items():
        write_parquet(tmp_path / f"{name}.parquet", [captions])
    assert load_image_text(tmp_path, split="train")["captions"][:] == [["a"], ["b"]]
    assert load_image_text(tmp_path, split="val_style")["captions"][:] == [["c"]]
    assert load_image_text(tmp_path / "val_style.parquet", split="val_style").num_rows == 1
    assert load_image_text(str(tmp_path / "train-*.parquet")).num_rows == 2
    assert (
        load_image_text(
            [tmp_path / "val_style.parquet", tmp_path / "train-00000-of-00002.parquet"], split="train"
        ).num_rows
        == 1
    )
    assert load_image_text([tmp_path / "val_style.parquet", tmp_path / "train-00000-of-00002.parquet"]).num_rows == 2
    with pytest.raises(ValueError, match="found val_style; leave split out"):
        load_image_text(tmp_path / "val_style.parquet", split="test")
    with pytest.raises(ValueError, match="several splits; pass split, one of train, val_style"):
        load_image_text(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; found train, val_style"):
        load_image_text(tmp_path, split="test")


def test_missing_columns_name_those_found(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"picture": [png("red")], "title": ["a rose"]}), path)
    with pytest.raises(SchemaError, match=r'no image.*found picture, title.*columns=\{"image": "..."\}'):
        load_image_text(path)
    with pytest.raises(SchemaError, match=r"no captions.*found image, title"):
        load_image_text(path, columns={"image": "picture"})
    with pytest.raises(SchemaError, match=r"a column 'name', found image, title"):
        load_image_text(path, columns={"image": "picture", "captions": "name"})
    with pytest.raises(ValueError, match="unknown keys.*caption"):
        load_image_text(path, columns={"caption": "title"})


def test_truncated_parquet_names_the_file(tmp_path):
    write_parquet(tmp_path / "a.parquet", [["a"]])
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(SchemaError, match="a.parquet: not readable as parquet"):
        load_image_text(tmp_path / "a.parquet")


@both_ways
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_image_folder(tmp_path, kind, streaming):
    for name, color in {"red.png": "red", "deep/blue.png": "blue", "uncaptioned.png": "green"}.items():
        save(tmp_path / name, color)
    if kind == "txt":
        (tmp_path / "red.txt").write_text("a rose\n\n red thing \n", encoding="utf-8")
        (tmp_path / "deep/blue.txt").write_text("the sky", encoding="utf-8")
    elif kind == "jsonl":
        rows = [{"file_name": "red.png", "captions": ["a rose", "red thing"], "by": "me"}]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        (tmp_path / "deep/metadata.jsonl").write_text('{"file_name": "blue.png", "captions": "the sky"}')
    else:
        with open(tmp_path / "metadata.csv", "w", newline="") as file:
            rows = [
                ("file_name", "text", "caption"),
                ("red.png", "a rose", "red thing"),
                ("deep/blue.png", "", "the sky"),
            ]
            csv.writer(file).writerows(rows)
    dataset = load_image_text(tmp_path, streaming=streaming)
    assert contents(dataset) == {("a rose", "red thing"): "red", ("the sky",): "blue"}
    if kind == "jsonl":
        assert {example["by"] for example in dataset} == {"me", None}


def test_image_folder_with_a_folder_per_split(tmp_path):
    for split, color in {"train": "red", "test": "blue"}.items():
        save(tmp_path / split / "a.png", color)
        (tmp_path / split / "a.txt").write_text(f"{color} thing")
    assert contents(load_image_text(tmp_path, split="test")) == {("blue thing",): "blue"}
    with pytest.raises(ValueError, match="no splits"):
        load_image_text(tmp_path, split="validation")


def test_image_folder_errors(tmp_path):
    save(tmp_path / "red.png", "red")
    with pytest.raises(SchemaError, match="no captions. Add a metadata.jsonl"):
        load_image_text(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "red.png", "label": 3}\n')
    with pytest.raises(SchemaError, match="no captions.*found file_name, label"):
        load_image_text(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "x"}\n{"text": "y"}')
    with pytest.raises(SchemaError, match="metadata.jsonl, row 2 has no file_name"):
        load_image_text(tmp_path)
    rows = '{"file_name": "red.png", "text": "x", "by": 3}\n{"file_name": "red.png", "text": "y", "by": "me"}'
    (tmp_path / "metadata.jsonl").write_text(rows)
    with pytest.raises(SchemaError, match="a column mixes types"):
        load_image_text(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "x"}\n{"file_na')
    with pytest.raises(SchemaError, match="metadata.jsonl, line 2: not JSON"):
        load_image_text(tmp_path)


def write_shard(path, samples):
    with tarfile.open(path, "w") as shard:
        for key, files in samples.items():
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))


@both_ways
def test_webdataset_shards(tmp_path, streaming):
    write_shard(tmp_path / "a-000000.tar", {"001": {"png": png("red"), "txt": b"a rose"}})
    write_shard(tmp_path / "a-000001.tar", {"002": {"png": png("blue"), "txt": b"the sky"}})
    dataset = load_image_text(tmp_path, streaming=streaming)
    assert contents(dataset) == {("a rose",): "red", ("the sky",): "blue"}
    assert [example["id"] for example in dataset] == ["001", "002"]


@both_ways
def test_broken_pictures_in_shards_are_counted(tmp_path, streaming):
    samples = {f"{number}": {"png": data, "txt": b"text"} for number, data in enumerate([png("red"), b"no image", b""])}
    write_shard(tmp_path / "a.tar", samples)
    report = SkipReport()
    assert len(list(iter_valid(load_image_text(tmp_path / "a.tar", streaming=streaming), report))) == 1
    assert report.skipped == 2 and report.used == 1


@both_ways
def test_webdataset_captions_in_json(tmp_path, streaming):
    sample = {"png": png("red"), "json": json.dumps({"caption": "a rose", "width": 4}).encode()}
    write_shard(tmp_path / "a.tar", {"001": sample})
    dataset = load_image_text(tmp_path / "a.tar", streaming=streaming)
    assert contents(dataset) == {("a rose",): "red"}
    assert json.loads(next(iter(dataset))["json"])["width"] == 4


@both_ways
def test_webdataset_samples_may_differ_in_their_files(tmp_path, streaming, caplog):
    samples = {
        "deep/1": {"png": png("red"), "txt": b"a rose", "cls": b"3"},
        "deep/2": {"jpg": png("green"), "json": b'{"caption": "grass", "key": "k2"}'},
        "deep/3": {"webp": png("blue"), "json": b"{broken"},
        "deep/4": {"txt": b"a caption alone"},
        "deep/5": {"png": png("blue"), "txt": b"lost with the end of the file"},
    }
    write_shard(tmp_path / "a.tar", samples)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: data.index(b"lost with") - 600])
    report = SkipReport()
    examples = list(iter_valid(load_image_text(tmp_path / "a.tar", streaming=streaming), report))
    assert [(example["id"], example["captions"]) for example in examples] == [
        ("deep/1", ["a rose"]),
        ("deep/2", ["grass"]),
    ]
    assert report.faults == {"no caption": 1, "no bytes": 1} and "deep/3.webp" in report.summary()
    assert "ends too early" in caplog.text


def test_webdataset_errors_and_other_names(tmp_path):
    write_shard(tmp_path / "a.tar", {"1": {"main.png": png("red"), "title": b"a rose", "json": b'{"key": 12}'}})
    with pytest.raises(SchemaError, match='no images in its first 1 samples.*columns={"image"'):
        load_image_text(tmp_path / "a.tar")
    columns = {"image": "main.png", "captions": "title", "id": "key"}
    dataset = load_image_text(tmp_path / "a.tar", columns=columns)
    assert contents(dataset) == {("a rose",): "red"} and dataset["id"][:] == ["12"]
    write_shard(tmp_path / "a.tar", {"1": {"main.png": png("blue"), "title": b"the sky"}})
    assert contents(load_image_text(tmp_path / "a.tar", columns=columns)) == {("the sky",): "blue"}
    (tmp_path / "a.tar").write_bytes(b"junk" * 300)
    with pytest.raises(SchemaError, match="a.tar: not a tar file"):
        load_image_text(tmp_path / "a.tar")


def write_coco(tmp_path):
    images = [{"id": 9, "file_name": "COCO_000009.png"}, {"id": 5, "file_name": "COCO_000005.png"}]
    save(tmp_path / "val2014/COCO_000009.png", "red")
    save(tmp_path / "val2014/COCO_000005.png", "blue")
    annotations = [
        {"image_id": 9, "id": 1, "caption": "a rose"},
        {"image_id": 5, "id": 2, "caption": "the sky\n"},
        {"image_id": 9, "id": 3, "caption": "red thing"},
    ]
    path = tmp_path / "annotations/captions_val2014.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@both_ways
def test_coco_captions(tmp_path, streaming):
    dataset = load_image_text(write_coco(tmp_path), image_root=tmp_path / "val2014", streaming=streaming)
    assert contents(dataset) == {("a rose", "red thing"): "red", ("the sky",): "blue"}
    assert [example["id"] for example in dataset] == ["9", "5"]


def test_coco_errors(tmp_path):
    path = write_coco(tmp_path)
    with pytest.raises(SchemaError, match="none of its first images is there.*COCO_000009.png.*image_root"):
        load_image_text(path)
    with pytest.raises(SchemaError, match="as image_root the folder .*nowhere now"):
        load_image_text(path, image_root=tmp_path / "nowhere")
    path.write_text(json.dumps({"images": [{"id": 1}], "annotations": []}))
    with pytest.raises(SchemaError, match="not COCO captions: .*file_name"):
        load_image_text(path, image_root=tmp_path / "val2014")
    path.write_text('{"images": [')
    with pytest.raises(SchemaError, match="not a complete JSON file"):
        load_image_text(path)


def write_karpathy(tmp_path):
    def image(name, split, *raw):
        return {"filepath": "val2014", "filename": name, "split": split, "cocoid": 40 + len(name),
                "sentences": [{"raw": text, "tokens": text.split()} for text in raw]}  # fmt: skip

    for name, color in {"a.png": "red", "bb.png": "green", "ccc.png": "blue"}.items():
        save(tmp_path / "val2014" / name, color)
    images = [
        image("a.png", "train", "a rose", "red thing"),
        image("bb.png", "restval", "grass"),
        image("ccc.png", "test", "the sky"),
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def test_karpathy_splits(tmp_path):
    path = write_karpathy(tmp_path)
    assert contents(load_image_text(path, split="test")) == {("the sky",): "blue"}
    joined = load_image_text(path, split="train+restval")
    assert contents(joined) == {("a rose", "red thing"): "red", ("grass",): "green"}
    assert joined["id"][:] == ["45", "46"]
    everything = load_image_text(path, split="train+restval+test", streaming=True)
    assert [example["split"] for example in everything] == ["train", "restval", "test"]
    assert contents(load_image_text(path, split="train")) == {("a rose", "red thing"): "red"}
    with pytest.raises(ValueError, match="several splits; pass split, one of restval, test, train"):
        load_image_text(path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"images": data["images"][:2]}))  # all of them to train on
    assert contents(load_image_text(path)) == contents(joined)
    path.write_text(json.dumps(data))
    with pytest.raises(SchemaError, match="no split val; found restval, test, train"):
        load_image_text(path, split="val")


def test_cc3m_table_with_pictures_by_row_number_and_by_hash(tmp_path):
    urls = [f"https://example.org/{number}/image.jpg?x=1" for number in range(5)]
    lines = ['a "rose', "grass", "the sky", "never downloaded", "blue by its plain number"]
    rows = [f"{caption}\t{url}\n" for caption, url in zip(lines, urls)]
    table = tmp_path / "Train_GCC-training.tsv"
    table.write_text("".join([*rows[:4], "a damaged row\n", rows[4]]), encoding="utf-8")
    images = tmp_path / "images"
    save(images / "00000/000000000.png", "red")
    save(images / f"{hashlib.md5(urls[1].encode()).hexdigest()}.jpg", "green")
    save(images / f"{hashlib.sha256(urls[2].encode()).hexdigest()}.webp", "blue")
    save(images / "5.png", "blue")
    report = SkipReport()
    dataset = load_image_text(table, image_root=images, report=report)
    expected = {('a "rose',): "red", ("grass",): "green", ("the sky",): "blue", ("blue by its plain number",): "blue"}
    assert contents(dataset) == expected
    assert dataset["url"][:] == [urls[0], urls[1], urls[2], urls[4]]
    assert report.listed == [(urls[3], "not downloaded"), (f"{table}, row 4", "not two columns")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SchemaError, match="none of its images.*000000000.jpg.*img2dataset"):
        load_image_text(table, image_root=tmp_path / "empty")


@both_ways
def test_unsplash_table(tmp_path, streaming):
    header = ["photo_id", "photo_url", "photo_image_url", "photo_description", "ai_description", "photo_width"]
    rows = [
        ["XMyPniM9LF0", "https://u/1", "https://i/1", "Woman, exploring\ta forest", "woman in woods", "4272"],
        ["rDLBArZUl1c", "https://u/2", "https://i/2", "", "succulent plants", "3456"],
        ["cNDGZ2sQ3Bo", "https://u/3", "https://i/3", "", "", "100"],
    ]
    with open(tmp_path / "photos.tsv000", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([header, *rows])
    for row, color in zip(rows, COLORS):
        save(tmp_path / "photos" / f"{row[0]}.jpg", color)
    dataset = load_image_text(tmp_path / "photos.tsv000", image_root=tmp_path / "photos", streaming=streaming)
    examples = list(dataset)
    assert [example["id"] for example in examples] == [row[0] for row in rows]
    assert examples[0]["captions"] == ["Woman, exploring\ta forest", "woman in woods"]
    assert examples[1]["captions"] == ["succulent plants"] and examples[1]["photo_width"] == "3456"
    report = SkipReport()
    assert len(list(iter_valid(dataset, report))) == 2
    assert report.faults == {"no caption": 1} and "cNDGZ2sQ3Bo" in report.summary()


def test_table_without_a_url_column(tmp_path):
    (tmp_path / "a.csv").write_text("link,caption\nx,y\n")
    with pytest.raises(SchemaError, match="no url.*found link, caption"):
        load_image_text(tmp_path / "a.csv")


def test_a_byte_order_mark_is_no_text(tmp_path):
    save(tmp_path / "side/red.png", "red")
    (tmp_path / "side/red.txt").write_text("red apple", encoding="utf-8-sig")
    assert contents(load_image_text(tmp_path / "side")) == {("red apple",): "red"}
    files = {"metadata.csv": "file_name,text\nred.png,x\n", "metadata.jsonl": '{"file_name": "red.png", "text": "x"}'}
    for name, text in files.items():
        save(tmp_path / name / "red.png", "red")
        (tmp_path / name / name).write_text(text, encoding="utf-8-sig")
        assert contents(load_image_text(tmp_path / name)) == {("x",): "red"}
    save(tmp_path / "0.png", "red")
    for name, text in {"a.csv": "url,caption\nhttps://i/0,x\n", "b.tsv": "https://i/0\tx\n"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert contents(load_image_text(tmp_path / name)) == {("x",): "red"}
    annotations = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (tmp_path / "coco.json").write_text(json.dumps(annotations), encoding="utf-8-sig")
    assert contents(load_image_text(tmp_path / "coco.json")) == {("x",): "red"}
    write_shard(tmp_path / "a.tar", {"1": {"png": png("red"), "txt": "\ufeffx".encode()}})
    assert contents(load_image_text(tmp_path / "a.tar")) == {("x",): "red"}


@pytest.mark.parametrize("rows", [1, 10_000])  # csv itself minds cells beyond its limit only
@pytest.mark.parametrize("name", ["a.csv", "metadata.csv"])
def test_a_table_with_an_unclosed_quote_is_named(tmp_path, name, rows):
    (tmp_path / name).write_text('url,file_name,caption\nhttps://i/0,red.png,"x\n' + "https://i/1,1.png,y\n" * rows)
    with pytest.raises(SchemaError, match=f"{name}: not a table that can be read .*Close the quotation mark"):
        load_image_text(tmp_path if name == "metadata.csv" else tmp_path / name)


@both_ways
def test_pictures_that_parquet_names_lie_in_the_root(tmp_path, streaming, monkeypatch):
    save(tmp_path / "pictures/a.png", "red")
    save(tmp_path / "a.png", "blue")  # where the command happens to run
    monkeypatch.chdir(tmp_path)
    for folder, name, root in (("x", "a.png", "pictures"), ("pictures", "a.png", None)):
        path = tmp_path / folder / "a.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [{"bytes": None, "path": name}], "captions": [["x"]], "id": [7]}), path)
        dataset = load_image_text(path, image_root=root, streaming=streaming)
        assert contents(dataset) == {("x",): "red"} and next(iter(dataset))["id"] == "7"
    pq.write_table(pa.table({"image": ["../a.png"], "captions": [["x"]]}), path)
    with pytest.raises(SchemaError, match="'../a.png' is outside of"):
        list(load_image_text(path, streaming=streaming))


def test_an_image_folder_of_splits_needs_one(tmp_path):
    for split, color in (("train", "red"), ("test", "blue")):
        save(tmp_path / split / "a.png", color)
        (tmp_path / split / "a.txt").write_text(split)
    with pytest.raises(ValueError, match="has several splits; pass split, one of test, train"):
        load_image_text(tmp_path)
    assert contents(load_image_text(tmp_path, split="train")) == {("train",): "red"}


@both_ways
def test_captions_without_words_are_none(tmp_path, streaming):
    write_parquet(tmp_path / "a.parquet", [["a", None], [None], ["  ", " b "]])
    report, dataset = SkipReport(), load_image_text(tmp_path / "a.parquet", streaming=streaming)
    assert [row["captions"] for row in iter_valid(dataset, report)] == [["a"], ["b"]]
    assert report.faults == {"no caption": 1}


def test_a_caption_that_is_no_text_is_none(tmp_path):
    save(tmp_path / "a/0.png", "red")
    (tmp_path / "a/metadata.jsonl").write_text('{"file_name": "0.png", "caption": 5}')
    assert load_image_text(tmp_path / "a")[0]["captions"] == []
    write_shard(tmp_path / "a.tar", {"1": {"png": png("red"), "json": b'{"caption": 5}'}})
    assert load_image_text(tmp_path / "a.tar")[0]["captions"] == []


def test_quotation_marks_that_close_are_read_as_usual(tmp_path):
    for number in range(4):
        save(tmp_path / f"{number}.png", "red")
    cells = ['"one, and\nanother"', 'two" nail', '"three" blind mice', '"the ""last""\n"']
    table = "url,caption\n" + "".join(f"https://i/{number},{cell}\n" for number, cell in enumerate(cells))
    (tmp_path / "a.csv").write_text(table)
    found = [row["captions"] for row in load_image_text(tmp_path / "a.csv")]
    assert found == [["one, and\nanother"], ['two" nail'], ["three blind mice"], ['the "last"']]


@both_ways
def test_broken_pictures_are_counted_and_named(tmp_path, streaming):
    good = png("red")
    pictures = [good, b"", good, b"no image at all", good[:40], good]
    rows = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(pictures)]
    pq.write_table(
        pa.table({"image": rows, "captions": [["a"], ["b"], [], ["d"], ["e"], ["f"]]}), tmp_path / "a.parquet"
    )
    report = SkipReport(max_listed=3)
    dataset = load_image_text(tmp_path / "a.parquet", streaming=streaming)
    assert [example["captions"] for example in iter_valid(dataset, report)] == [["a"], ["f"]]
    assert (report.used, report.skipped) == (2, 4)
    assert [name for name, _ in report.listed] == ["1.png", "2.png", "3.png"]
    summary = report.summary()
    assert summary.startswith("2 of 6 images used, 4 skipped.") and "and 1 more" in summary
    assert report.faults["no bytes"] == 1 and report.faults["no caption"] == 1
    without = SkipReport()
    assert len(list(iter_valid(dataset, without, require_captions=False))) == 3


def test_missing_files_are_counted_too(tmp_path):
    path = write_karpathy(tmp_path)
    (tmp_path / "val2014/bb.png").unlink()
    report = SkipReport()
    assert len(list(iter_valid(load_image_text(path, split="train+restval+test"), report))) == 2
    assert report.listed[0][0].endswith("bb.png") and "no such file" in report.listed[0][1]


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.parquet: no such file"):
        load_image_text(tmp_path / "gone.parquet")
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot tell its format.*parquet, imagefolder"):
        load_image_text(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="format 'jpeg' is unknown"):
        load_image_text(tmp_path, format="jpeg")
    with pytest.raises(ValueError, match="has no splits"):
        load_image_text(tmp_path, format="imagefolder", split="train")


def test_hub_ids_go_to_the_hub(tmp_path, monkeypatch):
    asked = []

    def load_dataset(path, split=None, streaming=False):
        asked.append((path, split, streaming))
        return Dataset.from_dict({"image": [{"bytes": png("red"), "path": None}], "text": ["a rose"]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert contents(load_image_text("someone/roses", split="train")) == {("a rose",): "red"}
    assert asked == [("someone/roses", "train", False)]


OUTSIDE = {"up": "../private.png", "up_from_within": "deep/../../private.png", "absolute": "{tmp}/private.png"}


def write_source(kind, root, name):
    """Metadata beside or over the folder of pictures, with one picture; arguments for `load_image_text`."""
    if kind == "imagefolder":
        (root / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
        return {"source": root}
    image = {"id": 1, "file_name": name, "filename": name, "split": "train", "sentences": [{"raw": "x"}]}
    data = {"images": [image]} | ({"annotations": [{"image_id": 1, "caption": "x"}]} if kind == "coco" else {})
    (root.parent / f"{kind}.json").write_text(json.dumps(data))
    return {"source": root.parent / f"{kind}.json", "image_root": root}


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("kind", ["imagefolder", "coco", "karpathy"])
def test_pictures_outside_of_their_folder_are_refused(tmp_path, kind, name):
    save(tmp_path / "private.png", "red")
    (tmp_path / "root/deep").mkdir(parents=True)
    name = name.format(tmp=tmp_path)
    with pytest.raises(SchemaError, match=f"the image '{name}' is outside of .*root. .*pass"):
        load_image_text(**write_source(kind, tmp_path / "root", name))


@pytest.mark.parametrize("name", ["red.png", "deep/../red.png", "{tmp}/root/red.png", "link/red.png"])
@pytest.mark.parametrize("kind", ["imagefolder", "coco", "karpathy"])
def test_pictures_within_their_folder_may_go_by_any_path(tmp_path, monkeypatch, kind, name):
    save(tmp_path / "root/red.png", "red")
    save(tmp_path / "elsewhere/red.png", "red")
    (tmp_path / "root/deep").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "root")  # and the folder by a relative one
    source = write_source(kind, tmp_path / "root", name.format(tmp=tmp_path))
    source |= {"image_root": "."} if "image_root" in source else {"source": "."}
    assert contents(load_image_text(**source)) == {("x",): "red"}


def test_metadata_of_a_sub_folder_may_name_pictures_beside_it(tmp_path):
    save(tmp_path / "pictures/red.png", "red")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/metadata.jsonl").write_text('{"file_name": "../pictures/red.png", "text": "x"}')
    assert contents(load_image_text(tmp_path)) == {("x",): "red"}


def test_rows_of_one_file_may_hold_pictures_or_name_them(tmp_path, monkeypatch):
    """Whatever the first row has: every path is kept to the folder."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.png").write_bytes(png("blue"))
    (tmp_path / "secret.png").write_bytes(png("red"))
    monkeypatch.chdir(tmp_path)
    inside, beside = {"bytes": png("red"), "path": None}, {"bytes": None, "path": "b.png"}
    path = tmp_path / "data" / "a.parquet"

    def second(images):
        pq.write_table(pa.table({"image": images, "captions": [["x"], ["y"]]}), path)
        return load_image_text(path)[1]["image"]

    for first in (inside, None, {"bytes": b"", "path": None}):
        assert second([first, beside]) == {"bytes": None, "path": str(tmp_path / "data" / "b.png")}
    with pytest.raises(SchemaError, match="secret.png"):
        second([inside, {"bytes": None, "path": str(tmp_path / "secret.png")}])


def test_looking_for_paths_copies_no_pictures():
    """Chunks are not put together, whose pictures may be more than two gigabytes."""
    images = [pa.array([{"bytes": b"x" * 10**6, "path": None}, {"bytes": None, "path": f"{i}.png"}]) for i in range(50)]
    dataset = Dataset(pa.table({"image": pa.chunked_array(images)}), fingerprint="chunks")
    before = pa.total_allocated_bytes()
    paths = image_text._paths(dataset)
    assert next(paths) == "0.png" and pa.total_allocated_bytes() - before < 10**6
    assert len([*paths]) == 49


def test_hidden_files_of_a_shard_are_passed_over(tmp_path):
    """macOS's tar writes "._a.png" before a.png."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("._a.png", b"x"), ("a.png", png("red")), ("._a.txt", b"x"), ("a.txt", b"a rose")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (sample,) = load_image_text(tmp_path / "a.tar")
    assert sample["captions"] == ["a rose"] and sample["image"]["bytes"] == png("red")


@both_ways
def test_a_shard_without_rows_is_passed_over(tmp_path, streaming):
    write_parquet(tmp_path / "a-00000-of-00002.parquet", [["a rose"]])
    empty = pq.read_table(tmp_path / "a-00000-of-00002.parquet").slice(0, 0)
    pq.write_table(empty, tmp_path / "a-00001-of-00002.parquet")
    assert contents(load_image_text(tmp_path, streaming=streaming)) == {("a rose",): "red"}


def img2dataset_table(path):
    """What it writes about each shard or folder: everything but the pictures."""
    pq.write_table(pa.table({"url": ["https://i/1"], "caption": ["a rose"], "key": ["0"], "status": ["success"]}), path)


def test_a_table_about_shards_is_not_taken_for_the_data(tmp_path):
    for shard, color in enumerate(("red", "green")):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as archive:
            for name, data in ((f"{shard}.png", png(color)), (f"{shard}.txt", color.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        img2dataset_table(tmp_path / f"{shard:05d}.parquet")
    assert contents(load_image_text(tmp_path)) == {("red",): "red", ("green",): "green"}


def test_a_table_about_folders_of_pictures_is_not_taken_for_the_data(tmp_path):
    for number, color in enumerate(COLORS):
        save(tmp_path / "00000" / f"{number:09d}.png", color)
        (tmp_path / "00000" / f"{number:09d}.txt").write_text(color)
    img2dataset_table(tmp_path / "00000.parquet")
    assert contents(load_image_text(tmp_path)) == {(color,): color for color in COLORS}
    # A table alone, or one whose pictures stand in a column that is named, is the data.
    with pytest.raises(SchemaError, match="no image: looked for .*found url, caption, key, status"):
        load_image_text(tmp_path / "00000.parquet")
    pq.write_table(pa.table({"scan": [png("red")], "caption": ["a rose"]}), tmp_path / "00000.parquet")
    assert contents(load_image_text(tmp_path, columns={"image": "scan"})) == {("a rose",): "red"}


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_tables_are_numbered_under_either_suffix(tmp_path, delimiter):
    with open(tmp_path / "photos.csv000", "w", newline="", encoding="utf-8") as file:
        rows = [["photo_id", "photo_image_url", "photo_description"], ["abc", "https://i/1", "a red, red rose"]]
        csv.writer(file, delimiter=delimiter).writerows(rows)
    save(tmp_path / "abc.jpg", "red")
    assert contents(load_image_text(tmp_path / "photos.csv000")) == {("a red, red rose",): "red"}


def test_hidden_files_of_a_folder_are_passed_over(tmp_path):
    """A run that was killed while it wrote leaves one."""
    write_parquet(tmp_path / "train.parquet", [["a rose"]])
    (tmp_path / ".train.tmp.parquet").write_bytes(b"half")
    assert contents(load_image_text(tmp_path)) == {("a rose",): "red"}
