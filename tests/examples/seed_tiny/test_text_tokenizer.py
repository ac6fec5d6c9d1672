"""The tokenizer of the text branch: a run that resumes keeps its own, and the script makes it from captions."""

import pyarrow as pa
import pyarrow.parquet as pq
from makers.text_tokenizer import kept_tokenizer, train_text_tokenizer
from run_example import run_script
from toy_pictures import toy_rows
from transformers import AutoTokenizer


def test_a_tokenizer_is_kept_and_made_anew_for_other_texts(tmp_path):
    folder = tmp_path / "text_tokenizer"

    def words(texts, size=110, needed=False):
        return kept_tokenizer(folder, texts, size, train_text_tokenizer, needed).get_vocab().keys()

    first = words(["zebra zebra zebra"])
    assert "zebra" in first
    assert (folder / "made_of.txt").stat().st_size == 64
    (folder / "kept").touch()
    assert words(["zebra zebra zebra"]) == first and (folder / "kept").exists()
    assert len(words(["zebra zebra zebra"], 90)) == 90
    second = words(["okapi okapi okapi"])
    assert "okapi" in second and "zebra" not in second

    assert words(["zebra zebra zebra"], needed=True) == second, "the checkpoint's own; check_run refuses the run"


def test_the_script_makes_it_once(tmp_path, capsys):
    pq.write_table(pa.Table.from_pylist(toy_rows()), tmp_path / "train.parquet")
    folder = tmp_path / "tokenizer"
    options = ["--data", tmp_path / "train.parquet", "--vocab-size", 120, "--output", folder]
    run_script("seed_tiny/train_text_tokenizer.py", *options)
    written = (folder / "tokenizer.json").stat().st_mtime_ns
    run_script("seed_tiny/train_text_tokenizer.py", *options)
    assert (folder / "tokenizer.json").stat().st_mtime_ns == written
    assert "120 entries, from 12 captions" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(folder).tokenize("a picture") == ["a", "picture"]
