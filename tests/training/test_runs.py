"""What a run finds of an earlier start: its last whole checkpoint, its tokenizer."""

import json

import pytest
from makers.text_tokenizer import train_text_tokenizer

from seed.training.runs import kept_tokenizer, last_checkpoint


def write_checkpoint(folder, step: int, state: str | None = "{}"):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_what_a_kill_left_of_a_checkpoint_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    write_checkpoint(tmp_path, 12, state=None)
    assert last_checkpoint(tmp_path) is None
    whole = write_checkpoint(tmp_path, 9, json.dumps({"global_step": 9}))
    write_checkpoint(tmp_path, 8)
    write_checkpoint(tmp_path, 10, '{"global_st')
    assert last_checkpoint(tmp_path) == str(whole)


def test_a_tokenizer_is_kept_and_made_anew_for_other_texts(tmp_path):
    def words(texts, size=110):
        return kept_tokenizer(tmp_path, texts, size, train_text_tokenizer).get_vocab().keys()

    first = words(["zebra zebra zebra"])
    assert "zebra" in first
    assert (tmp_path / "text_tokenizer" / "made_of.txt").stat().st_size == 64
    (tmp_path / "text_tokenizer" / "kept").touch()
    assert words(["zebra zebra zebra"]) == first and (tmp_path / "text_tokenizer" / "kept").exists()
    assert len(words(["zebra zebra zebra"], 90)) == 90
    second = words(["okapi okapi okapi"])
    assert "okapi" in second and "zebra" not in second

    write_checkpoint(tmp_path / "checkpoints", 2)
    assert words(["zebra zebra zebra"]) == second, "the checkpoint's own; check_run refuses the run"


@pytest.mark.parametrize("name", ["checkpoint-final", "checkpoint-"])
def test_other_folders_are_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) is None
