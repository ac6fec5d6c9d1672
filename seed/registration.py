"""Registration with transformers' Auto classes and pipelines after `import seed`, which imports neither for it."""

import contextlib
import importlib.abc
import importlib.util
import sys

# The modules of transformers that hold the Auto classes, and the one that holds the registry of pipelines.
_AUTO = "transformers.models.auto."
_AUTO_MODULES = {
    _AUTO + name for name in ("configuration_auto", "modeling_auto", "image_processing_auto", "processing_auto")
}
_PIPELINE_MODULES = {"transformers.pipelines"}
# Modules of these packages import the Auto classes and each other in many orders. We register when none of them is
# still being imported, so that what registering imports is never half loaded.
_WATCHED = ("transformers.", f"{__package__}.")
_done: set[str] = set()


def register_auto_classes() -> None:
    """Register SEED's classes with the Auto classes. After `import seed` this happens as soon as one is imported."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from .configuration_seed import SeedConfig
    from .image_processing_seed import SeedImageProcessor, SeedImageProcessorPil
    from .modeling_seed import SeedModel
    from .modeling_seed_language import SeedLlamaForCausalLM, SeedOPTForCausalLM
    from .processing_seed import SeedProcessor

    if "auto" in _done:
        return
    _done.add("auto")
    AutoConfig.register("seed", SeedConfig, exist_ok=True)
    AutoModel.register(SeedConfig, SeedModel, exist_ok=True)
    for language_model in (SeedOPTForCausalLM, SeedLlamaForCausalLM):
        config = language_model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
            auto.register(config, language_model, exist_ok=True)
        AutoProcessor.register(config, SeedProcessor, exist_ok=True)
        # Trainer looks here whether label smoothing has to shift the labels.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type] = language_model.__name__
    # Some releases of transformers refuse every use of AutoImageProcessor where torchvision is not installed.
    with contextlib.suppress(ImportError):
        AutoImageProcessor.register(
            SeedConfig,
            image_processor_classes={"pil": SeedImageProcessorPil, "torchvision": SeedImageProcessor},
            exist_ok=True,
        )


def register_pipelines() -> None:
    """
    Register the task "text-to-image". After `import seed` this happens as soon as transformers' pipelines are imported.

    "image-text-to-text" and "any-to-any" are transformers' own, and find SEED by the Auto classes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    from .task_pipelines_seed import SeedTextToImagePipeline

    if "pipelines" in _done:
        return
    _done.add("pipelines")
    PIPELINE_REGISTRY.register_pipeline(
        "text-to-image", pipeline_class=SeedTextToImagePipeline, pt_model=AutoModelForCausalLM, type="multimodal"
    )


def register_on_import() -> None:
    """Register with what transformers has imported already, and with the rest when it is imported."""
    waiting = [(_AUTO_MODULES, register_auto_classes), (_PIPELINE_MODULES, register_pipelines)]
    finder = _AfterImport(waiting)
    sys.meta_path.insert(0, finder)
    finder.register_ready()


class _AfterImport(importlib.abc.MetaPathFinder):
    """
    Import hook that lets modules load as usual, and registers SEED when nothing is half loaded.

    Args:
        waiting: pairs of a set of modules and a function, which is called once one of the modules is imported.
    """

    def __init__(self, waiting: list) -> None:
        self.waiting = waiting
        self.loading = 0

    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(_WATCHED) or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._then_register(spec.loader.exec_module)
        return spec

    def register_ready(self) -> None:
        for entry in [entry for entry in self.waiting if entry[0] & sys.modules.keys()]:
            # Registering imports modules, and so comes here again.
            if entry in self.waiting:
                self.waiting.remove(entry)
                entry[1]()
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)

    def _then_register(self, exec_module):
        def exec_and_register(module) -> None:
            self.loading += 1
            try:
                exec_module(module)
            finally:
                self.loading -= 1
            if not self.loading:
                self.register_ready()

        return exec_and_register
