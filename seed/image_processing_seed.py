"""SEED's image processor: it squashes RGB to a square by bicubic interpolation and normalises it (released recipe)."""

import io
import os
import struct
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling, make_flat_list_of_images


def upright_rgb(image: Image.Image) -> Image.Image:
    """
    Return an open picture as RGB, upright, and on white if it is transparent.

    Its EXIF orientation is applied. CMYK goes through the embedded colour profile if there is one. Pictures of 16 bits
    or floats are scaled to 8 bits, not clipped. An animation gives the frame that it stands at.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except (struct.error, SyntaxError, ValueError, KeyError, TypeError):
        pass  # a picture with damaged EXIF data can still be shown
    if image.mode == "RGB" and "transparency" not in image.info:
        return image if image.__class__ is Image.Image else image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """
    Scale a grey picture with more than 8 bits to 8 bits, so that full range stays full range.

    16-bit files (and mode `I`, in which Pillow opens some of them) span 0 .. 65535. Mode `F` has no agreed range, so we
    take the smallest of 0 .. 1, 0 .. 255 and 0 .. 65535 that holds the largest value (our choice).
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    full = 65535.0
    if image.mode == "F":
        full = next((full for full in (1.0, 255.0) if values.max() <= full), 65535.0)
    elif image.mode == "I" and 0 <= values.min() and values.max() <= 255:
        full = 255.0
    return Image.fromarray(np.clip(values * (255.0 / full) + 0.5, 0, 255).astype(np.uint8))


def _from_cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            return ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except ImageCms.PyCMSError:
            pass  # the profile is damaged; the plain formula below needs none
    return image.convert("RGB")


class _AsShownMixin:
    """
    What both image processors share: they open pictures by `upright_rgb`, as `seed tokenize` does.

    transformers by itself would drop transparency and clip 16 bits. A picture that transformers' own pipelines open,
    from a path or an address, has lost its transparency before it comes here.
    """

    def fetch_images(self, image_url_or_urls):
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(each) for each in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)) and os.path.isfile(image_url_or_urls):
            with Image.open(image_url_or_urls) as image:
                return upright_rgb(image)
        is_path = isinstance(image_url_or_urls, os.PathLike)
        image = super().fetch_images(os.fspath(image_url_or_urls) if is_path else image_url_or_urls)
        return upright_rgb(image) if isinstance(image, Image.Image) else image


class SeedImageProcessor(_AsShownMixin, TorchvisionBackend):
    """
    Image processor that makes `pixel_values`, `(batch, 3, height, width)`, with torchvision.

    An image is squashed to `size`, not cropped. This is the only preprocessing here, while the released scripts had
    two. [`SeedImageProcessorPil`] needs no torchvision, and its result for PIL images is PIL's own to 3e-7.
    `AutoImageProcessor` chooses between them.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True


class SeedImageProcessorPil(_AsShownMixin, PilBackend):
    """[`SeedImageProcessor`] on PIL and numpy, for machines without torchvision."""

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True


def pixel_batches(image_processor, images, batch_size: int = 32, **kwargs) -> Iterator[torch.Tensor]:
    """
    Yield the pixel values of images batch by batch, `(batch, 3, height, width)`; open files when their turn comes.

    Args:
        images: an image (PIL, array, tensor, path or address), or lists of them. Arrays and tensors hold 0 .. 255, or
            floats of 0 .. 1, as diffusers returns them; with `do_rescale=False`, what the model is given.
        kwargs: arguments of the image processor.
    """
    if kwargs.get("do_rescale", image_processor.do_rescale):
        images = images_as_bytes(images)
    images = flat_images(images)
    for start in range(0, len(images), batch_size):
        batch = flat_images(image_processor.fetch_images(images[start : start + batch_size]))
        yield image_processor(batch, return_tensors="pt", **kwargs)["pixel_values"]


def flat_images(images) -> list:
    """Return one entry per image, from an image, a path, a batch as array or tensor, or lists of any depth."""
    if isinstance(images, (list, tuple)):
        return [image for part in images for image in flat_images(part)]
    if isinstance(images, (str, os.PathLike)):
        return [images]
    return make_flat_list_of_images(images[..., None] if getattr(images, "ndim", 3) == 2 else images)


def images_as_bytes(images):
    """
    Turn floats of 0 .. 1, as diffusers returns them, into the bytes that it saves; leave everything else as it is.

    Raises:
        ValueError: some floats are negative, as in the range -1 .. 1 that models use.
    """
    if isinstance(images, (list, tuple)):
        return [images_as_bytes(image) for image in images]
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        return images_as_bytes(torch.from_numpy(images)).numpy()
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()  # because image processors work on the CPU
    if not (isinstance(images, torch.Tensor) and images.is_floating_point() and images.numel()):
        return images
    if images.min() < 0:
        raise ValueError(
            f"The images' values begin at {float(images.min()):.3g}; expected 0 .. 1, or 0 .. 255. For -1 .. 1, the "
            "range of models, pass (images + 1) / 2."
        )
    if images.max() <= 1:
        return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return images


__all__ = ["SeedImageProcessor", "SeedImageProcessorPil", "flat_images", "pixel_batches", "upright_rgb"]
