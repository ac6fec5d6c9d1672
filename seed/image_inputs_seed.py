"""Images, codes and ids as users pass them, single, batched or in lists of any depth, as flat lists."""

import numbers
from pathlib import Path

import numpy as np
import torch

from .sequences_seed import IMAGE_PLACEHOLDER


def check_placeholders(texts: list[str], images, num_images: int) -> None:
    wanted = [sample.count(IMAGE_PLACEHOLDER) for sample in texts]
    if sum(wanted) != num_images:
        raise ValueError(
            f"The text has {sum(wanted)} {IMAGE_PLACEHOLDER} placeholders for {num_images} images (or their codes); "
            "write one placeholder where each image belongs."
        )
    # A list per text says which images belong to which.
    if isinstance(images, (list, tuple)) and images and all(_holds_images(group) for group in images):
        given = [len(group) for group in images]
        if given != wanted:
            raise ValueError(
                f"The texts have {wanted} {IMAGE_PLACEHOLDER} placeholders, but {given} images (or codes of images)."
            )


def _holds_images(group) -> bool:
    """Whether this is a list of images or of codes, not one image's codes or pixels."""
    if isinstance(group, torch.Tensor):
        return group.dim() == 2 and not group.is_floating_point()
    if isinstance(group, np.ndarray):
        return group.ndim == 2 and group.dtype.kind in "iu"
    return isinstance(group, (list, tuple)) and not (group and isinstance(group[0], numbers.Integral))


def flatten_codes(codes) -> list:
    """One entry per image, from a tensor or array, or lists of any depth; what each holds is checked later."""
    if hasattr(codes, "ndim"):
        return [codes] if codes.ndim == 1 else list(codes.reshape(-1, codes.shape[-1]))
    if not isinstance(codes, (list, tuple)):
        raise TypeError(f"codes are a {type(codes).__name__}; expected integers, (images, num_codes).")
    if codes and not hasattr(codes[0], "__len__"):
        return [codes]
    return [row for part in codes for row in flatten_codes(part)]


def flatten_images(images) -> list:
    """One entry per image, from an image, a batch as array or tensor, or lists of any depth."""
    if isinstance(images, (list, tuple)):
        return [image for part in images for image in flatten_images(part)]
    if getattr(images, "ndim", 3) == 4:
        return list(images)
    return [str(images) if isinstance(images, Path) else images]


def images_as_bytes(images):
    """Floats of 0 .. 1, as diffusers returns them, in the bytes that it saves; anything else as it is."""
    if isinstance(images, (list, tuple)):
        return [images_as_bytes(image) for image in images]
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        return images_as_bytes(torch.from_numpy(images)).numpy()
    if isinstance(images, torch.Tensor) and images.is_floating_point() and images.numel() and images.max() <= 1:
        return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return images


def id_rows(ids) -> list[list[int]]:
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if ids and not isinstance(ids[0], (list, tuple)) and not hasattr(ids[0], "tolist"):
        ids = [ids]
    return [row.tolist() if hasattr(row, "tolist") else list(row) for row in ids]


__all__ = ["check_placeholders", "flatten_codes", "flatten_images", "id_rows", "images_as_bytes"]
