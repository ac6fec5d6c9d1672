"""Hashes of weights and preprocessing, which are stored with everything that is computed with them."""

import hashlib
from collections.abc import Iterable

import torch


def weight_hash(module: torch.nn.Module) -> str:
    """
    Return the SHA-256 over names, shapes, dtypes and values of a module's tensors.

    The step counters of batch norms count as zero, because they change nothing that a network computes.
    """
    return hash_tensors(
        (name, torch.zeros_like(tensor) if name.endswith("num_batches_tracked") else tensor)
        for name, tensor in module.state_dict().items()
    )


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_hash(image_processor) -> str:
    """Return the SHA-256 over the settings of an image processor."""
    return hashlib.sha256(image_processor.to_json_string().encode()).hexdigest()


__all__ = ["hash_tensors", "preprocessing_hash", "weight_hash"]
