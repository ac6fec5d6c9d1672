"""SEED for the Hugging Face Hub: images as 32 discrete, causally ordered codes (arXiv 2307.08041)."""

import importlib
from typing import TYPE_CHECKING

from .registration import register_auto_classes, register_on_import

__version__ = "0.1.0"

# Every public name and the module that defines it, which is imported on first use, so that `import seed` costs nothing.
_MODULE_OF = {
    "SeedConfig": "configuration_seed",
    "SeedQFormerConfig": "configuration_seed",
    "SeedLlamaConfig": "configuration_seed_language",
    "SeedOPTConfig": "configuration_seed_language",
    "SeedImageProcessor": "image_processing_seed",
    "SeedImageProcessorPil": "image_processing_seed",
    "SeedModel": "modeling_seed",
    "SeedOutput": "modeling_seed",
    "SeedForImageTextPretraining": "modeling_seed_heads",
    "SeedForContrastiveLearning": "modeling_seed_heads",
    "SeedForQuantization": "modeling_seed_heads",
    "SeedLlamaForCausalLM": "modeling_seed_language",
    "SeedOPTForCausalLM": "modeling_seed_language",
    "SeedPipeline": "pipeline_seed",
    "SeedProcessor": "processing_seed",
    "SeedTextToImagePipeline": "task_pipelines_seed",
    "SeedVectorQuantizer": "quantization_seed",
    "write_answers": "generation_seed",
    "write_captions": "generation_seed",
    "write_codes": "generation_seed",
}
__all__ = ["default_model", "register_auto_classes", *_MODULE_OF]

if TYPE_CHECKING:
    from .configuration_seed import SeedConfig, SeedQFormerConfig
    from .configuration_seed_language import SeedLlamaConfig, SeedOPTConfig
    from .generation_seed import write_answers, write_captions, write_codes
    from .image_processing_seed import SeedImageProcessor, SeedImageProcessorPil
    from .modeling_seed import SeedModel, SeedOutput
    from .modeling_seed_heads import SeedForContrastiveLearning, SeedForImageTextPretraining, SeedForQuantization
    from .modeling_seed_language import SeedLlamaForCausalLM, SeedOPTForCausalLM
    from .pipeline_seed import SeedPipeline
    from .processing_seed import SeedProcessor
    from .quantization_seed import SeedVectorQuantizer
    from .task_pipelines_seed import SeedTextToImagePipeline


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'seed' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


def default_model() -> str:
    """
    Return the folder of seed-tiny, the trained small SEED that comes with the package.

    Raises:
        FileNotFoundError: it is neither in the installed package nor in a checkout.
    """
    from importlib.resources import files
    from pathlib import Path

    installed = Path(str(files(__name__))) / "hub_configs" / "seed-tiny"
    if installed.is_dir():
        return str(installed)
    checkout = Path(__file__).resolve().parent.parent / "hub_configs" / "seed-tiny"
    if checkout.is_dir():
        return str(checkout)
    raise FileNotFoundError(
        f"seed-tiny is neither at {installed} nor at {checkout}: reinstall the package, or name a model with --model."
    )


register_on_import()
