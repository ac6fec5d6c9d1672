"""Images, codes and ids as users pass them, single, batched or in lists of any depth, as flat lists."""

from pathlib import Path

import numpy as np
import torch

from .sequences_seed import IMAGE_PLACEHOLDER


def check_placeholders(texts: list[str], images, num_images: int, are_codes: bool) -> None:
    wanted = [sample.count(IMAGE_PLACEHOLDER) for sample in texts]
    if sum(wanted) != num_images:
        raise ValueError(
            f"The text has {sum(wanted)} {IMAGE_PLACEHOLDER} placeholders for {num_images} images (or their codes); "
            "write one placeholder where each image belongs."
        )
    # A list per text says which images belong to which; a lone image among lists is one.
    if isinstance(images, (list, tuple)) and any(_holds_images(group, are_codes) for group in images):
        given = [len(group) if _holds_images(group, are_codes) else 1 for group in images]
        if given != wanted:
            raise ValueError(
                f"The texts have {wanted} {IMAGE_PLACEHOLDER} placeholders, but {given} images (or codes of images)."
            )


def _holds_images(group, are_codes: bool) -> bool:
    """Whether this is a list of images or of codes, not one image's codes or pixels."""
    if hasattr(group, "ndim"):
        return group.ndim == (2 if are_codes else 4)
    return isinstance(group, (list, tuple)) and not (are_codes and group and _is_number(group[0]))


def _is_number(value) -> bool:
    return not isinstance(value, (list, tuple)) and getattr(value, "ndim", 0) == 0


def flatten_codes(codes) -> list:
    """One entry per image, from a tensor or array, or lists of any depth; what each holds is checked later."""
    if hasattr(codes, "ndim"):
        return [codes] if codes.ndim == 1 else list(codes.reshape(-1, codes.shape[-1]))
    if not isinstance(codes, (list, tuple)):
        raise TypeError(f"codes are a {type(codes).__name__}; expected integers, (images, num_codes).")
    if codes and _is_number(codes[0]):
        return [codes]
    return [row for part in codes for row in flatten_codes(part)]


def flatten_images(images) -> list:
    """One entry per image, from an image, a batch as array or tensor, or lists of any depth."""
    if isinstance(images, (list, tuple)):
        return [image for part in images for image in flatten_images(part)]
    if getattr(images, "ndim", 3) == 4:
        return list(images)
    if getattr(images, "ndim", 3) == 2:  # grey
        return [images[..., None]]
    return [str(images) if isinstance(images, Path) else images]


def images_as_bytes(images):
    """
    Floats of 0 .. 1, as diffusers returns them, in the bytes that it saves; anything else as it is.

    Raises:
        ValueError: floats of which some are negative, as of models' ranges.
    """
    if isinstance(images, (list, tuple)):
        return [images_as_bytes(image) for image in images]
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        return images_as_bytes(torch.from_numpy(images)).numpy()
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()  # where image processors work
    if not (isinstance(images, torch.Tensor) and images.is_floating_point() and images.numel()):
        return images
    if images.min() < 0:
        raise ValueError(
            f"The images' values begin at {float(images.min()):.3g}; expected 0 .. 1, or 0 .. 255. Of -1 .. 1, as "
            "models have it, pass (images + 1) / 2."
        )
    if images.max() <= 1:
        return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return images


def id_rows(ids) -> list[list[int]]:
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if ids and not isinstance(ids[0], (list, tuple)) and not hasattr(ids[0], "tolist"):
        ids = [ids]
    return [row.tolist() if hasattr(row, "tolist") else list(row) for row in ids]


__all__ = ["check_placeholders", "flatten_codes", "flatten_images", "id_rows", "images_as_bytes"]
