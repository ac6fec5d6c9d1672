"""What a user gives is checked before torch is imported, so that a mistake is named at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from seed.commands.checks import check_data, check_model, check_output_file, check_output_folder
from seed.commands.main import main

RUN = """
import sys
from seed.commands.main import main
code = main(sys.argv[1:])
print(sorted({"torch", "transformers", "diffusers", "datasets", "huggingface_hub"} & sys.modules.keys()))
sys.exit(code)
"""
# Arguments of every verb, in a folder with a picture `mine.png` and files of the right names; and what is wrong there.
EVALUATE = ["--output", "out"]
MISSING_FILES = [
    (["demo", "none.png"], "none.png: no such file"),
    (["tokenize", "mine.png", "none", "--output", "x.parquet"], "none: no such file or folder"),
    (
        ["tokenize", "codes.parquet", "--image-root", "none", "--output", "x.parquet"],
        "none: --image-root is not a folder",
    ),
    (["detokenize", "none.parquet", "--output", "out"], "none.parquet: no such file"),
    (["reconstruct", "none.png", "--output", "x.png"], "none.png: no such file"),
    (["caption", "none.png"], "none.png: no such file"),
    (["ask", "none.png", "what is it?"], "none.png: no such file"),
    (["draw", "a dog", "--output", "none/x.png"], "none: no such folder"),
    (["evaluate", "retrieval", "--data", "none.parquet", *EVALUATE], "none.parquet: no such file or folder"),
    (["evaluate", "reconstruction", "--data", "none.parquet", *EVALUATE], "none.parquet: no such file or folder"),
    (["evaluate", "text", "--data", "none.jsonl", *EVALUATE], "none.jsonl: no such file"),
    (["evaluate", "caption", "--data", "none.parquet", *EVALUATE], "none.parquet: no such file or folder"),
    (["evaluate", "vqa", "--data", "none.parquet", *EVALUATE], "none.parquet: no such file or folder"),
    (["evaluate", "draw", "--data", "none.parquet", *EVALUATE], "none.parquet: no such file or folder"),
    (
        ["convert", "seed1", "--causal-qformer", "none.pth", "--seed-tokenizer", "a.pth", "--output", "out"],
        "no Causal Q-Former checkpoint at 'none.pth'",
    ),
    (["convert", "blip2", "--model", "no/such/folder", "--output", "out"], "'no/such/folder' is no folder here"),
]
OTHER_MISTAKES = [
    (["demo", "broken.png"], "broken.png: not an image"),
    (["demo", "--output", "sheet.qqq"], "no image format has the suffix '.qqq'"),
    (["tokenize", "mine.png", "--output", "folder"], "folder: this is a folder; name a file to write"),
    (["tokenize", "mine.png", "--output", "mine.png/x.parquet"], "mine.png: not a folder"),
    (["detokenize", "codes.parquet", "--output", "mine.png"], "mine.png: not a folder"),
    (["reconstruct", "mine.png", "--output", "x.png", "--decoder", "no/such/folder"], "'no/such/folder' is no folder"),
    (["reconstruct", "mine.png", "--output", "folder"], "folder: this is a folder; name a file to write"),
    (["reconstruct", "mine.png", "--output", "x"], "no image format has the suffix ''"),
    (["caption", "mine.png", "--model", "./none"], "'./none' is no folder here, and no id of a repository"),
    (["ask", "mine.png", " "], "The question is ' '; expected words"),
    (["draw", "", "--output", "x.png"], "The prompt is ''; expected words"),
    (["evaluate", "retrieval", "--data", "codes.parquet", "--output", "mine.png"], "mine.png: not a folder"),
    (["evaluate", "caption", "--data", "codes.parquet", "--limit", "1", *EVALUATE], "at least 2"),
    (["evaluate", "draw", "--data", "codes.parquet", "--judge", "no/such/judge", *EVALUATE], "'no/such/judge' is no"),
    (["convert", "blip2", "--model", "owner/name", "--output", "folder"], "'folder' exists already"),
]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "mine.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("codes.parquet", "a.pth"):
        (tmp_path / name).write_bytes(b"not read")
    (tmp_path / "folder").mkdir()
    return tmp_path


def start(arguments, folder) -> subprocess.CompletedProcess:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(("arguments", "message"), MISSING_FILES + OTHER_MISTAKES)
def test_mistakes_are_named_without_torch(arguments, message, folder):
    before = sorted(folder.rglob("*"))
    process = start(arguments, folder)
    assert process.returncode == 2 and process.stdout == "[]\n", process.stdout + process.stderr
    assert process.stderr.startswith("seed: error: ") and message in process.stderr
    assert process.stderr.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("arguments", "message"), MISSING_FILES)
def test_debug_raises_them(arguments, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises((OSError, ValueError), match=re.escape(message)):
        main([*arguments, "--debug"])


def test_python_m_seed_is_the_command():
    process = subprocess.run([sys.executable, "-m", "seed", "--version"], capture_output=True, text=True, check=True)
    assert process.stdout.startswith("seed ")


def test_what_may_be_a_model_or_data():
    check_model(None, ".", "gpt2", "owner/name", "owner/name.v1-2_b")
    for name in ("a/b/c", "/none", "none/", "a--b", "a..b", "two words", ""):
        with pytest.raises(FileNotFoundError):
            check_model(name)
    check_data(None)
    check_data("owner/name")
    check_data("anything", format="hub")
    check_data(f"{Path(__file__).parent}/test_*.py")
    with pytest.raises(FileNotFoundError):
        check_data("none.parquet")


def test_missing_folders_of_an_output_will_be_made(tmp_path):
    check_output_folder(tmp_path / "a" / "b")
    check_output_file(tmp_path / "a" / "b.parquet")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="you may not write"):
            check_output_file(tmp_path / "new" / "x.parquet")
    finally:
        tmp_path.chmod(0o700)
