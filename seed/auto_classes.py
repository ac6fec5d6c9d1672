"""Makes transformers' Auto classes know SEED after `import seed`, without importing transformers or torch for it."""

import contextlib
import importlib.abc
import importlib.util
import sys

# Modules of transformers that hold the Auto classes.
_AUTO = "transformers.models.auto."
_AUTO_MODULES = {_AUTO + name for name in ("configuration_auto", "modeling_auto", "image_processing_auto")}
# Modules of these packages import the Auto classes and each other in many orders, so we register when no import among
# them is under way any more: what registering imports is then never half loaded.
_WATCHED = ("transformers.", f"{__package__}.")
_done: set[str] = set()


def register_auto_classes() -> None:
    """Registers SEED's classes with every Auto class. `import seed` does it by itself as soon as one is imported."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    from .configuration_seed import SeedConfig
    from .image_processing_seed import SeedImageProcessor, SeedImageProcessorPil
    from .modeling_seed import SeedModel

    if "seed" in _done:
        return
    _done.add("seed")
    AutoConfig.register("seed", SeedConfig, exist_ok=True)
    AutoModel.register(SeedConfig, SeedModel, exist_ok=True)
    # Some releases of transformers refuse every use of AutoImageProcessor where torchvision is not installed.
    with contextlib.suppress(ImportError):
        AutoImageProcessor.register(
            SeedConfig,
            image_processor_classes={"pil": SeedImageProcessorPil, "torchvision": SeedImageProcessor},
            exist_ok=True,
        )


def register_on_import() -> None:
    """Registers now if the Auto classes are imported already, else when they are."""
    if any(name in sys.modules for name in _AUTO_MODULES):
        register_auto_classes()
    else:
        sys.meta_path.insert(0, _AfterAutoImport())


class _AfterAutoImport(importlib.abc.MetaPathFinder):
    """Lets the import system load modules as ever, and registers when the Auto classes are there and all is ready."""

    def __init__(self) -> None:
        self.loading = 0

    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(_WATCHED):
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._then_register(spec.loader.exec_module)
        return spec

    def _then_register(self, exec_module):
        def exec_and_register(module) -> None:
            self.loading += 1
            try:
                exec_module(module)
            finally:
                self.loading -= 1
            if not self.loading and self in sys.meta_path and any(name in sys.modules for name in _AUTO_MODULES):
                sys.meta_path.remove(self)
                register_auto_classes()

        return exec_and_register
