"""Saving over an earlier save: the new model whole, or none."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_repository import make_seed_model
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from seed import SeedModel
from seed.files_seed import read_json, replace_into, replacing, replacing_file, write_json

SHARD = "40KB"


def text_model(value: float) -> OPTForCausalLM:
    """A tiny model of which every weight is `value`."""
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = OPTForCausalLM(OPTConfig(vocab_size=336, word_embed_proj_dim=32, max_position_embeddings=64, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def save(value: float, folder: Path, sharded: bool) -> None:
    text_model(value).save_pretrained(folder, **({"max_shard_size": SHARD} if sharded else {}))
    (folder / "templates").mkdir()
    (folder / "templates" / "chat.jinja").write_text(str(value))


def values(folder: Path) -> set[float]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {value for parameter in model.parameters() for value in parameter.detach().unique().tolist()}


@pytest.mark.parametrize("before, after", [(False, True), (True, False), (True, True), (False, False)])
def test_the_new_model_is_what_loads(tmp_path, before, after):
    output, partial = tmp_path / "out", tmp_path / "out" / ".partial"
    save(1.0, output, before)
    (output / "checkpoints").mkdir()
    (output / "run.json").write_text("{}")
    save(2.0, partial, after)
    expected = {path.name for path in partial.iterdir()} | {"checkpoints", "run.json"}
    assert any("-of-" in name for name in expected) == after
    replace_into(partial, output)
    assert values(output) == {2.0}
    assert {path.name for path in output.iterdir()} == expected
    assert (output / "templates" / "chat.jinja").read_text() == "2.0"


@pytest.mark.parametrize("before, after", [(False, True), (True, False)])
def test_a_kill_leaves_the_old_the_new_or_none(tmp_path, monkeypatch, before, after):
    """Stopped before each change to the folder in turn, then saved again."""
    seen = set()
    for changes in range(100):
        output = tmp_path / str(changes)
        partial = output / ".partial"
        save(1.0, output, before)
        save(2.0, partial, after)
        left = [changes]

        def counted(change, left=left):
            def run(*arguments, **options):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                return change(*arguments, **options)

            return run

        with monkeypatch.context() as killed:
            killed.setattr(os, "replace", counted(os.replace))
            killed.setattr(Path, "unlink", counted(Path.unlink))
            killed.setattr(Path, "rmdir", counted(Path.rmdir))
            try:
                replace_into(partial, output)
                break
            except KeyboardInterrupt:
                pass
        try:
            seen.add(frozenset(values(output)))
        except (OSError, ValueError) as error:
            assert "config.json" in str(error)
            weights = [load_file(path) for path in output.glob("model*.safetensors")]
            found = {value for tensors in weights for tensor in tensors.values() for value in tensor.unique().tolist()}
            assert len(found) <= 1, "not of both models"
            seen.add(None)
        shutil.rmtree(partial, ignore_errors=True)
        save(2.0, partial, after)
        replace_into(partial, output)
        assert values(output) == {2.0}
    assert changes > 4 and seen == {frozenset({1.0}), None, frozenset({2.0})}


def test_an_interrupted_image_tokenizer_says_what_is_missing(tmp_path):
    make_seed_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        SeedModel.from_pretrained(tmp_path)


def test_a_file_or_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"b": 1, "a": 2})
    assert read_json(path) == {"a": 2, "b": 1} and read_json(tmp_path / "none.json") == {}
    with pytest.raises(KeyboardInterrupt), replacing_file(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_text("{")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path) as partial:
        write_json(partial / path.name, {})
        raise KeyboardInterrupt
    assert read_json(path) == {"a": 2, "b": 1} and list(tmp_path.iterdir()) == [path]
    with replacing(tmp_path) as partial:
        write_json(partial / path.name, {})
    assert read_json(path) == {} and list(tmp_path.iterdir()) == [path]
    path.write_text("{")
    with pytest.raises(ValueError, match="values.json is not JSON .*download or copy it again"):
        read_json(path)


def test_half_a_save_replaces_nothing(tmp_path):
    output, partial = tmp_path / "out", tmp_path / "partial"
    output.mkdir()
    partial.mkdir()
    (output / "config.json").write_text(json.dumps({"old": True}))
    (partial / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="stays as it is"):
        replace_into(partial, output)
    assert json.loads((output / "config.json").read_text()) == {"old": True}
