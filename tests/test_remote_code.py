"""Saved with its code, a checkpoint loads where `seed` is not installed (`trust_remote_code=True`, the user's word)."""

import os
import subprocess
import sys
from pathlib import Path

SAVE = """
import torch
from seed import SeedConfig, SeedImageProcessorPil, SeedModel
from tiny_models import make_tiny_seed_config

SeedConfig.register_for_auto_class()
SeedModel.register_for_auto_class("AutoModel")
SeedImageProcessorPil.register_for_auto_class("AutoImageProcessor")
torch.manual_seed(0)
model = SeedModel(make_tiny_seed_config()).eval()
model.save_pretrained("saved")
SeedImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained("saved")
print(model.get_image_tokens(torch.ones(1, 3, 28, 28)).tolist())
"""
# A finder that refuses `seed` makes an environment without the package, however it was installed here.
LOAD = """
import sys

class NoSeed:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "seed":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoSeed())
import torch
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("saved", trust_remote_code=True).eval()
assert AutoImageProcessor.from_pretrained("saved", trust_remote_code=True).size["height"] == 28
print(model.get_image_tokens(torch.ones(1, 3, 28, 28)).tolist())
"""


def test_code_travels_with_the_checkpoint(tmp_path):
    root = Path(__file__).parents[1]

    def run(code: str, path: str) -> str:
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()[-1]

    assert run(SAVE, f"{root}{os.pathsep}{root / 'tests'}") == run(LOAD, "")
