"""Saved with its code, a checkpoint loads where `seed` is not installed (`trust_remote_code=True`, the user's word)."""

import os
import subprocess
import sys
from pathlib import Path

SAVE = """
from pathlib import Path

import torch
from seed import SeedConfig, SeedImageProcessorPil, SeedModel
from tiny_language import make_language_repository
from tiny_models import make_tiny_seed_config
from transformers import pipeline

make_language_repository(Path("plain"))
pipe = pipeline("text-to-image", model="plain")
pipe.save_pretrained("repository")
# Where the package is installed, its own classes load, and nothing has to be trusted.
again = pipeline("text-to-image", model="repository")
assert type(again) is type(pipe) and type(again.processor) is type(pipe.processor)
print("drawing", sum(again("a dog", seed=0, progress=False).tobytes()))

SeedConfig.register_for_auto_class()
SeedModel.register_for_auto_class("AutoModel")
SeedImageProcessorPil.register_for_auto_class("AutoImageProcessor")
torch.manual_seed(0)
model = SeedModel(make_tiny_seed_config()).eval()
model.save_pretrained("saved")
SeedImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained("saved")
print("codes", model.get_image_tokens(torch.ones(1, 3, 28, 28)).tolist())
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
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

pipe = pipeline("text-to-image", model="repository", trust_remote_code=True)
reading = pipeline("image-text-to-text", model="repository", trust_remote_code=True)
answer = reading(images=Image.new("RGB", (9, 9)), text="<image>A photo of", max_new_tokens=3, return_full_text=False)
assert isinstance(answer[0]["generated_text"], str)
print("drawing", sum(pipe("a dog", seed=0, progress=False).tobytes()))

model = AutoModel.from_pretrained("saved", trust_remote_code=True).eval()
assert AutoImageProcessor.from_pretrained("saved", trust_remote_code=True).size["height"] == 28
print("codes", model.get_image_tokens(torch.ones(1, 3, 28, 28)).tolist())
"""


def test_code_travels_with_the_checkpoint(tmp_path):
    """An image tokenizer's folder by the Auto classes, and a whole repository by transformers' pipelines."""
    root = Path(__file__).parents[1]

    def run(code: str, path: str) -> list[str]:
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return [line for line in result.stdout.splitlines() if line.startswith(("codes", "drawing"))]

    helpers = [root, root / "tests", root / "examples" / "seed_tiny"]
    saved = run(SAVE, os.pathsep.join(map(str, helpers)))
    assert len(saved) == 2 and run(LOAD, "") == saved
