"""The quickstart, launched as a reader launches it."""

import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_repository import pictures

from seed import SeedPipeline

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_quickstart(seed_repository, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(1)[0].save("mine.png")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "mine.png", str(seed_repository)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    pipeline = SeedPipeline.from_pretrained(seed_repository)
    expected = pipeline(Image.open("mine.png"), generator=torch.Generator().manual_seed(0))
    assert capsys.readouterr().out.splitlines()[0] == str(expected.codes.tolist())
    drawn, coarse = (np.asarray(Image.open(f"quickstart_{count}_codes.png"), int) for count in (32, 8))
    assert np.array_equal(drawn, np.asarray(expected.images[0])) and (drawn != coarse).any()
