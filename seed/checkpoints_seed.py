"""Loading of whole checkpoints: no missing tensor starts at random in silence."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn


class CompleteCheckpointMixin:
    """
    A mixin for `PreTrainedModel` classes, named before it: a checkpoint that lacks a tensor is an error, not a warning.
    """

    # What to do if the checkpoint is sound and only lacks a part that it cannot have yet.
    _advice_on_new_parts = (
        "if it comes from an earlier training stage, name the parts that are new in new_modules=(...)."
    )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, new_modules: str | tuple[str, ...] = (), **kwargs
    ):
        """
        Load a checkpoint as transformers does, except that a missing tensor is an error, not a warning.

        Args:
            new_modules: prefix or prefixes of the names of modules that the checkpoint may lack. They start freshly
                initialised. A training stage names the modules that it adds.

        Raises:
            ValueError: tensors are missing, or have another shape and `ignore_mismatched_sizes` is not set.
            FileNotFoundError, OSError: a file is missing or truncated.
        """
        new_modules = (new_modules,) if isinstance(new_modules, str) else tuple(new_modules)
        wants_info = kwargs.pop("output_loading_info", False)
        ignore_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        checkpoint = f"The checkpoint {str(pretrained_model_name_or_path)!r}"
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder", ""))
        # An adapter's folder needs no config.json: transformers loads the model that the adapter names.
        has_config = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
        no_config = pretrained_model_name_or_path and folder.is_dir() and not has_config
        if no_config and kwargs.get("config") is None:
            # Without this check transformers would build the default model, at full size.
            raise FileNotFoundError(f"{checkpoint} has no config.json: download or copy it again.")
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
                **kwargs,
            )
        except SafetensorError as error:
            raise OSError(
                f"{checkpoint} has a weights file that is truncated or damaged ({error}): download or copy it again."
            ) from error
        missing = sorted(key for key in info["missing_keys"] if not key.startswith(new_modules))
        if missing:
            raise ValueError(
                f"{checkpoint} lacks {len(missing)} tensors of {cls.__name__}, e.g. {missing[:5]}. It is incomplete "
                f"or has another architecture: download or convert it again; {cls._advice_on_new_parts}"
            )
        mismatched = sorted(info["mismatched_keys"])
        if mismatched and not ignore_mismatched:
            name, stored, expected = mismatched[0]
            raise ValueError(
                f"{checkpoint} has {len(mismatched)} tensors of another shape than {cls.__name__} with this config, "
                f"e.g. {name!r} of {tuple(stored)} instead of {tuple(expected)}. Load it with its own config, or pass "
                "ignore_mismatched_sizes=True to start those tensors afresh."
            )
        return (model, info) if wants_info else model


def own_tensor(module: nn.Module, name: str) -> torch.Tensor:
    """Return a module's own parameter or buffer, also if accelerate offloads it and loads it only during `forward`."""
    tensor = getattr(module, name)
    if not tensor.is_meta or not hasattr(module, "_hf_hook"):
        return tensor
    module._hf_hook.pre_forward(module)
    tensor = getattr(module, name).clone()
    module._hf_hook.post_forward(module, None)
    return tensor


__all__ = ["CompleteCheckpointMixin", "own_tensor"]
