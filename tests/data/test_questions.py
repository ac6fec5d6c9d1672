"""The reader of questions about pictures: rows without words, pictures as bytes and as paths."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_pictures import png

from seed.data.images import load_image
from seed.data.questions import QuestionFile


def test_questions_without_words_are_left_out_and_counted(tmp_path, capsys):
    path = tmp_path / "q.parquet"
    pictures = [{"bytes": bytes([number]), "path": None} for number in range(5)]
    answers = [["a"], [], ["b"], [None, " "], ["c"]]
    columns = {"question": ["what?", "what?", None, "what?", " "], "answers": answers, "image": pictures}
    pq.write_table(pa.table(columns), path)
    found = QuestionFile(path)
    assert [row["answers"] for row in found.questions] == [["a"]] and len(found.pictures) == 1
    assert "4 of 5 rows have no question or no answer" in capsys.readouterr().out
    pq.write_table(pa.table(columns).slice(1), path)
    with pytest.raises(ValueError, match="holds no questions"):
        QuestionFile(path)


@pytest.mark.parametrize("kind", ["bytes", "path", "struct"])
def test_pictures_are_read_as_in_other_data(tmp_path, kind):
    """As bytes, or by paths relative to the file (or to `image_root`), wherever the process runs."""
    (tmp_path / "here").mkdir()
    contents = [png(image) for image in (Image.new("RGB", (8, 8), color) for color in ("blue", "red"))]
    for number, content in enumerate(contents):
        (tmp_path / "here" / f"{number}.png").write_bytes(content)
    numbers = [0, 1, 0]
    columns = {
        "bytes": [contents[number] for number in numbers],
        "path": [f"{number}.png" for number in numbers],
        "struct": [{"bytes": None, "path": f"{number}.png"} for number in numbers],
    }
    table = pa.table({"question": ["what?"] * 3, "answer": ["a", "b", "c"], "image": columns[kind]})
    pq.write_table(table, tmp_path / "here" / "q.parquet")
    pq.write_table(table, tmp_path / "q.parquet")
    for found in (QuestionFile(tmp_path / "here" / "q.parquet"), QuestionFile(tmp_path, None, tmp_path / "here")):
        assert [row["picture"] for row in found.questions] == numbers
        opened = [np.asarray(load_image(picture)) for picture in found.pictures]
        for pixels, content in zip(opened, contents, strict=True):
            assert np.array_equal(pixels, Image.open(io.BytesIO(content)).convert("RGB"))


def test_pictures_outside_of_the_folder_are_refused(tmp_path):
    (tmp_path / "here").mkdir()
    columns = {"question": ["what?"], "answer": ["a"], "image": ["../other.png"]}
    pq.write_table(pa.table(columns), tmp_path / "here" / "q.parquet")
    with pytest.raises(ValueError, match="outside of"):
        QuestionFile(tmp_path / "here" / "q.parquet")
    words = QuestionFile(tmp_path / "here" / "q.parquet", words_only=True)
    assert [row["answers"] for row in words.questions] == [["a"]]


def test_a_column_of_pictures_of_another_kind_is_refused(tmp_path):
    for image in ([[1, 2]], [7], [{"url": "https://x"}]):
        pq.write_table(pa.table({"question": ["what?"], "answer": ["a"], "image": image}), tmp_path / "q.parquet")
        with pytest.raises(ValueError, match="column 'image' holds .* expected a picture's bytes or path"):
            QuestionFile(tmp_path / "q.parquet")
