"""Every block of the README runs, in order, as a newcomer would run it; what a block needs is made here at toy size."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from makers.text_tokenizer import train_text_tokenizer
from PIL import Image
from reference_seed1 import ReferenceSeed1
from run_example import run_script

from seed.commands.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.DOTALL)
# Commands that install or test are run word for word by .ci/run, which must name them.
RUN_BY_CI = {"pip install -e . && seed demo", 'pip install -e ".[test]" && pytest'}
# A part of the test extra, so that it is installed where this test runs.
PART_OF_TEST_EXTRA = {'pip install -e ".[train]"'}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder that looks like the repository to the README's relative paths, with room to write."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("seed", "hub_configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def run_seed(command: str) -> None:
    assert main(shlex.split(command)[1:]) == 0, command


def run_conversion(command: str, folder: Path) -> None:
    """The README's command on small files of the released layout, whose numbers of heads it must then be told."""
    ReferenceSeed1().randomize(seed=1).save(folder)
    run_seed(f"{command} --vision-heads 4 --qformer-heads 4 --decoder-heads 6")
    assert (folder / "seed-1" / "model.safetensors").exists()


def run_training(command: str, folder: Path) -> None:
    """The README's command with the smoke recipe, on a toy model and toy pictures under the README's names."""
    (folder / "emoji64").mkdir()
    image = folder / "picture.png"
    Image.new("RGB", (20, 20), "red").save(image)
    row = {"image": {"bytes": image.read_bytes(), "path": None}, "captions": ["red square"]}
    Dataset.from_list([row] * 8).to_parquet(folder / "emoji64" / "train.parquet")
    data = ["--data", "emoji64/train.parquet"]
    train_text_tokenizer(row["captions"], 100).save_pretrained("runs/text_tokenizer")
    run_script("train_qformer.py", "--recipe", "examples/recipes/qformer/smoke.yaml", *data,
               "--text-tokenizer", "runs/text_tokenizer", "--output", "runs/qformer")  # fmt: skip
    script, *arguments = shlex.split(command.replace("tiny.yaml", "smoke.yaml"))[1:]
    run_script(Path(script).name, *arguments)
    assert (folder / "runs" / "stage1" / "model.safetensors").exists()


def test_every_block_runs(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    ci = (ROOT / ".ci" / "run").read_text()
    assert len(BLOCKS) >= 6
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
            continue
        for command in commands(block):
            if command in RUN_BY_CI:
                last = command.split(" && ")[-1]
                assert last in ci, f".ci/run does not run {last!r}"
            elif command in PART_OF_TEST_EXTRA:
                assert "*TRAIN" in (ROOT / "setup.py").read_text()
            elif command.startswith("seed convert"):
                run_conversion(command, checkout)
            elif command.startswith("seed "):
                run_seed(command)
            elif command.startswith("python examples/train_stage1.py"):
                run_training(command, checkout)
            else:
                pytest.fail(f"The README has a command that this test does not know how to run: {command}")
    shutil.rmtree(checkout / "runs", ignore_errors=True)


def test_the_python_block_gives_what_the_commands_give(checkout, monkeypatch, capsys):
    """Captions, answers and drawings; the README also quotes what seed-tiny says of its pictures."""
    monkeypatch.chdir(checkout)
    (block,) = (block for language, block in BLOCKS if language == "python" and "write_captions" in block)
    scope = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), scope)
    captions, answers = (ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()[-2:])
    pictures = scope["pictures"]
    run_seed(shlex.join(["seed", "caption", *pictures]))
    assert capsys.readouterr().out.splitlines() == [f"{path}: {text}" for path, text in zip(pictures, captions)]
    for picture, answer in zip(pictures, answers):
        run_seed(shlex.join(["seed", "ask", picture, "which kind of thing is it?"]))
        assert capsys.readouterr().out.strip() == answer
    run_seed('seed draw "red apple" --seed 0 --output apple.png')
    with Image.open("apple.png") as drawing:
        assert np.array_equal(np.asarray(drawing.convert("RGB")), np.asarray(scope["image"]))

    (commands_to_try,) = (block for _, block in BLOCKS if "seed ask " in block)
    capsys.readouterr()
    for command in commands(commands_to_try)[:2]:  # its captions and answers
        run_seed(command)
        said = capsys.readouterr().out.strip().split(": ")[-1]
        assert f'"{said}"' in README, f"{command} says {said!r}, which is not what the README quotes."


def test_every_path_in_the_readme_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    named = re.findall(r"`((?:examples|seed|tests|hub_configs)/[\w./-]+)`", README)
    assert links and named
    for target in links + named:
        assert (ROOT / target).exists(), target
