"""`import seed` is lazy, and yet the Auto classes know SEED afterwards, in whatever order one imports."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import seed
from seed import SeedImageProcessorPil, SeedModel

MAPPED = "print(AutoModel._model_mapping[__import__('seed').SeedConfig].__name__)"


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_lazy():
    heavy = "{'torch', 'transformers', 'diffusers', 'datasets', 'PIL'}"
    assert run(f"import sys, seed; print(sorted({heavy} & sys.modules.keys()))") == "[]"


@pytest.mark.parametrize(
    "imports",
    [
        "import seed; from transformers import AutoModel",
        "from transformers import AutoModel; import seed",
        "from seed import SeedModel; from transformers import AutoModel",
        "from seed import SeedConfig; from transformers import AutoModel",
        "from seed.image_processing_seed import SeedImageProcessor; from transformers import AutoModel",
        "import seed; from transformers import AutoImageProcessor, AutoModel",
    ],
)
def test_auto_model_knows_seed(imports):
    assert run(f"{imports}; {MAPPED}").splitlines()[-1] == "SeedModel"


@pytest.mark.parametrize(
    "imports", ["import seed, transformers.pipelines", "from transformers import pipeline; import seed"]
)
def test_pipelines_know_seed(imports):
    registered = "transformers.pipelines.PIPELINE_REGISTRY.supported_tasks['text-to-image']['impl'].__name__"
    assert run(f"{imports}; import transformers; print({registered})").splitlines()[-1] == "SeedTextToImagePipeline"


def test_a_saved_folder_loads_by_auto_classes(tmp_path, tiny_seed_config):
    model = SeedModel(tiny_seed_config()).eval()
    model.save_pretrained(tmp_path)
    SeedImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), seed.SeedConfig)
    loaded = AutoModel.from_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded.get_image_tokens(pixel_values), model.get_image_tokens(pixel_values))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ in ("SeedImageProcessor", "SeedImageProcessorPil")
    assert processor.size["height"] == 28


def test_every_public_name_resolves():
    for name in seed.__all__:
        assert getattr(seed, name) is not None
    assert "SeedModel" in dir(seed)
    with pytest.raises(AttributeError, match="SeedModle"):
        _ = seed.SeedModle
