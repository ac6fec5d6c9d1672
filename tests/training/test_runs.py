"""What a run finds of an earlier start: its last whole checkpoint."""

import json

import pytest

from seed.training.runs import last_checkpoint


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


@pytest.mark.parametrize("name", ["checkpoint-final", "checkpoint-"])
def test_other_folders_are_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) is None
