"""What users get: a wheel with seed-tiny in it, within the sizes that were promised."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def test_seed_tiny_is_as_small_as_promised():
    folder = ROOT / "hub_configs" / "seed-tiny"
    assert size(folder / "image_tokenizer") + size(folder / "decoder") <= 40 and size(folder) <= 60


def test_a_wheel_carries_seed_tiny(tmp_path):
    pytest.importorskip("setuptools", minversion="70.1")  # which builds wheels by itself
    tree = tmp_path / "tree"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        tree.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree)
    for name in ("seed", "hub_configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("seed_vision-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = ROOT / "hub_configs" / "seed-tiny"
    expected = {f"seed/hub_configs/{file.relative_to(shipped.parent)}" for file in shipped.rglob("*") if file.is_file()}
    assert expected <= names and "seed/assets/demo/owl.png" in names
    assert "seed/evaluation/hub_metrics/coco_captions/coco_captions.py" in names
