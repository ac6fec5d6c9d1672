"""Questions: the colour rule on drawings made here, the emoji's questions by hand, easy-vqa against its package."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makers.colors import dominant_color
from makers.questions import easy_vqa_questions, emoji_questions, write_questions
from PIL import Image, ImageDraw
from run_example import run_script
from tiny_repository import pictures

from seed.data.codes import CodesMetadata, codes_schema
from seed.data.questions import QuestionFile


def drawing(*shapes):
    """Ellipses (box, fill, outline) on white, drawn large and scaled down, so that edges are mixed."""
    image = Image.new("RGB", (256, 256), "white")
    for box, fill, outline in shapes:
        ImageDraw.Draw(image).ellipse([4 * side for side in box], fill=fill, outline=outline, width=12)
    return image.resize((64, 64), Image.Resampling.LANCZOS)


LARGE, SMALL = (8, 8, 56, 56), (24, 24, 40, 40)
DRAWINGS = {
    "red": [(LARGE, "#dd2e44", None)],
    "yellow": [(LARGE, "#ffcc4d", "black"), (SMALL, "#dd2e44", None)],  # an outline and a mouth do not matter
    "blue": [(LARGE, "#55acee", None)],
    "green": [(LARGE, "#77b255", None)],
    "brown": [(LARGE, "#8a5a2b", None)],
    "purple": [(LARGE, "#9266cc", None)],
    "orange": [(LARGE, "#f4900c", None)],
    "pink": [(LARGE, "#f4abba", None)],
    "grey": [(LARGE, "#9a9a9a", None)],
    "black": [(LARGE, "#202020", None)],
}


@pytest.mark.parametrize("color", DRAWINGS)
def test_colors_that_are_clear(color):
    assert dominant_color(drawing(*DRAWINGS[color])) == color


UNCLEAR = {
    "half and half": [((4, 8, 30, 56), "#dd2e44", None), ((34, 8, 60, 56), "#55acee", None)],
    "white inside an outline": [(LARGE, "white", "black")],
    "between red and orange": [(LARGE, "#e0522b", None)],
    "a speck": [((30, 30, 34, 34), "#dd2e44", None)],
    "nothing": [],
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_colors_that_are_not_clear_are_not_named(case):
    assert dominant_color(drawing(*UNCLEAR[case])) is None


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def emoji(**fields):
    row = {"id": "noto/1", "license": "MIT", "attribution": "somebody", "name": "apple", "names": ["apple", "fruit"]}
    row |= {"category": "Food & Drink", "subcategory": "food-fruit", "image": png(drawing(*DRAWINGS["red"]))}
    return row | fields


def asked(**fields):
    return {row["kind"]: (row["question"], row["answers"]) for row in emoji_questions(emoji(**fields))}


def test_an_emojis_questions_by_hand():
    assert asked() == {
        "name": ("what is it?", ["apple", "fruit"]),
        "category": ("which kind of thing is it?", ["food"]),
        "subcategory": ("which kind of food is it?", ["fruit"]),
        "colour": ("which colour is the apple?", ["red"]),
    }
    assert "colour" not in asked(name="red apple")  # the question would give the answer away
    assert "colour" not in asked(category="People & Body")
    assert "subcategory" not in asked(subcategory="drink")
    assert "subcategory" not in asked(subcategory="place-other")
    assert asked(subcategory="hand-fingers-open")["subcategory"] == ("which kind of hand is it?", ["fingers open"])
    assert list(asked(category="Component")) == ["name"]


def test_easy_vqa_is_whole():
    import easy_vqa

    rows = list(easy_vqa_questions("test"))
    questions, answers, numbers = easy_vqa.get_test_questions()
    assert [row["question"] for row in rows] == questions
    assert [row["answers"] for row in rows] == [[answer] for answer in answers]
    paths = easy_vqa.get_test_image_paths()
    for position in (0, 5000, len(rows) - 1):
        given = Image.open(io.BytesIO(rows[position]["image"]["bytes"])).convert("RGB")
        assert np.array_equal(given, Image.open(paths[numbers[position]]).convert("RGB"))
    kinds = {row["kind"]: set() for row in rows}
    for row in rows:
        kinds[row["kind"]].update(row["answers"])
    assert kinds["yes/no"] == {"yes", "no"} and kinds["shape"] == {"circle", "rectangle", "triangle"}
    assert set.union(*kinds.values()) == set(easy_vqa.get_answers())
    with pytest.raises(ValueError, match="train and test"):
        next(easy_vqa_questions("val"))


def test_a_file_of_questions_keeps_each_picture_once(tmp_path):
    first, second = emoji(), emoji(id="noto/2", image=png(drawing(*UNCLEAR["half and half"])), name="it", names=["it"])
    path = tmp_path / "train.parquet"
    assert write_questions([*emoji_questions(first), *emoji_questions(second)], path) == 7
    opened = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened[0]["image"].size == (64, 64)
    found = QuestionFile(tmp_path)
    assert [picture["bytes"] for picture in found.pictures] == [first["image"]["bytes"], second["image"]["bytes"]]
    assert [row["picture"] for row in found.questions] == [0, 0, 0, 0, 1, 1, 1]
    assert found.questions[3]["answers"] == ["red"] and found.questions[3]["kind"] == "colour"
    with pytest.raises(FileNotFoundError, match="train"):
        QuestionFile(tmp_path, "test")


def test_codes_stand_in_place_of_pictures(tmp_path):
    metadata = CodesMetadata("abc", "def", "float32", codebook_size=8, num_codes=2)
    path = tmp_path / "q.parquet"
    write_questions(emoji_questions(emoji()), path, {"noto/1": [7, 0]}, metadata)
    found = QuestionFile(path)
    assert found.check_codes("abc", 8, 2).tolist() == [[7, 0]]
    with pytest.raises(ValueError, match="weights abc.* this model has other"):
        found.check_codes("other", 8, 2)
    pq.write_table(pq.read_table(path).replace_schema_metadata(), tmp_path / "unstamped.parquet")
    with pytest.raises(ValueError, match="does not say which image tokenizer"):
        QuestionFile(tmp_path / "unstamped.parquet").check_codes("abc", 8, 2)
    with pytest.raises(ValueError, match="out of range"):
        found.check_codes("abc", 4, 2)
    with pytest.raises(ValueError, match="no codes"):
        write_questions(emoji_questions(emoji(id="noto/3")), path, {"noto/1": [7, 0]}, metadata)
    pq.write_table(pa.table({"question": ["what?"], "image": [b""]}), path)
    with pytest.raises(ValueError, match="'answer'"):
        QuestionFile(path)


def test_the_script_uses_codes_that_are_there(seed_repository, tmp_path, capsys):
    rows = [emoji(id=f"noto/{number}", image=png(image)) for number, image in enumerate(pictures(3))]
    (tmp_path / "emoji").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "emoji" / "train.parquet")
    options = ["--emoji", tmp_path / "emoji", "--model", seed_repository]
    run_script("seed_tiny/build_questions.py", *options, "--output", tmp_path / "first")
    written = pq.read_table(tmp_path / "first" / "emoji_train.parquet")
    stamp = written.schema.metadata[b"seed"]
    schema = codes_schema(CodesMetadata(**json.loads(stamp)), with_captions=False)
    # Codes that no picture has, to see that they are taken.
    pq.write_table(
        pa.Table.from_pylist([{"id": "noto/1", "codes": [0] * 32}], schema=schema), tmp_path / "codes.parquet"
    )
    options += ["--codes", tmp_path / "codes.parquet"]
    run_script("seed_tiny/build_questions.py", *options, "--output", tmp_path / "again")
    again = pq.read_table(tmp_path / "again" / "emoji_train.parquet")
    for before, after in zip(written.to_pylist(), again.to_pylist()):
        assert after["codes"] == ([0] * 32 if before["id"] == "noto/1" else before["codes"])
