"""What made a file: hashes of weights and preprocessing that stand beside everything computed with them."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from ..repository_seed import CONFIG_FILE, remove_weights, turn


def weight_hash(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and values of a module's tensors."""
    return hash_tensors(module.state_dict().items())


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_hash(image_processor) -> str:
    """SHA-256 over the settings of an image processor."""
    return hashlib.sha256(image_processor.to_json_string().encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file, all or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def replace_into(partial: Path, output: Path) -> None:
    """
    Moves a saved model in place of the one in `output`; what else lies there stays.

    Several files cannot be replaced at once. So the old `config.json` and weights go first, those of a save in other
    shards too, and the new ones come last: weights, their index, `config.json`. A kill in between leaves a folder from
    which loading fails, with the rest of the save in `partial`, never a model of old and new parts. (Processors and
    tokenizers there may be old or new.) Saving again completes it.

    Args:
        partial: folder of a whole `save_pretrained`, on the same file system; it is gone afterwards.

    Raises:
        FileNotFoundError: `partial` has no `config.json`.
    """
    if not (partial / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{partial} has no {CONFIG_FILE}, so it is no saved model; {output} stays as it is. Save the model there "
            "first, with save_pretrained."
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / CONFIG_FILE).unlink(missing_ok=True)
    remove_weights(output)
    for item in sorted(partial.iterdir(), key=turn):
        if item.is_dir():  # os.replace takes the place of files and empty folders only
            shutil.rmtree(output / item.name, ignore_errors=True)
        os.replace(item, output / item.name)
    partial.rmdir()


__all__ = ["hash_tensors", "preprocessing_hash", "replace_into", "weight_hash", "write_atomically"]
