"""Stamping tables of one's own with what made their codes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seed.data.codes import CodesMetadata, read_codes, stamp_codes
from seed.training.language_examples import LanguageFile

METADATA = CodesMetadata("a" * 64, "b" * 64, "float32", codebook_size=64, num_codes=4)
CODES = [3, 0, 63, 5]


def image(codes) -> dict:
    return {"role": "user", "content": [{"type": "image", "text": None, "codes": codes}]}


ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "a", "codes": None}]}
ROWS = {
    "question": {"codes": CODES, "question": "?", "answers": ["a"]},
    "document": {"segments": [{"text": "a", "codes": None}, {"text": None, "codes": CODES}]},
    "instruction": {"messages": [image(CODES), ANSWER]},
}


@pytest.mark.parametrize("task", ROWS)
def test_a_stamped_table_can_be_trained_on(tmp_path, task):
    path = tmp_path / "new" / "mine.parquet"
    table = pa.Table.from_pylist([ROWS[task]] * 2).replace_schema_metadata({"mine": "kept"})
    stamp_codes(table, path, METADATA)
    file = LanguageFile(path, "a" * 64, codebook_size=64, num_codes=4)
    assert file.tasks == [task] and file.count(task) == 2
    assert pq.read_table(path).to_pylist() == table.to_pylist()
    assert pq.read_schema(path).metadata[b"mine"] == b"kept"
    stamp_codes(path, path, METADATA)  # a file, in place, once more
    if task == "question":
        assert read_codes(path, 64, 4).metadata == METADATA
    with pytest.raises(ValueError, match="mine.parquet: another image tokenizer made its codes"):
        stamp_codes(path, tmp_path / "other.parquet", CodesMetadata("c" * 64, "b" * 64, "float32", 64, 4))
    assert [item.name for item in tmp_path.rglob("*.*")] == ["mine.parquet"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"codes": [3, 0, 64, 5]}, "The table: code 64 in row 0"),
        ({"segments": [{"codes": [1, 2]}]}, "segments of row 0: row 0 has 2 codes"),
        ({"messages": [image([1, 2, 3, -1])]}, "messages of row 0: code -1"),
        ({"question": "?"}, "expected a column codes, segments or messages"),
    ],
)
def test_codes_of_another_shape_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        stamp_codes(pa.Table.from_pylist([row]), tmp_path / "mine.parquet", METADATA)
    assert not list(tmp_path.iterdir())
