"""SEED's image processor: RGB, squash to a square by bicubic interpolation, scale, normalise (released recipe)."""

import os

from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from .image_modes_seed import upright_rgb


class _AsShownMixin:
    """
    Takes pictures as `seed tokenize` does: upright, on white where they are transparent, 16 bits scaled to 8 (see
    `upright_rgb`), where transformers would drop transparency and clip. Opens `pathlib` paths, too. What transformers'
    own pipelines open themselves, from a path or an address, has lost its transparency before it comes here.
    """

    def fetch_images(self, image_url_or_urls):
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(each) for each in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)) and os.path.isfile(image_url_or_urls):
            with Image.open(image_url_or_urls) as image:
                return upright_rgb(image)
        is_path = isinstance(image_url_or_urls, os.PathLike)
        try:
            image = super().fetch_images(os.fspath(image_url_or_urls) if is_path else image_url_or_urls)
        except ValueError as error:
            if not isinstance(image_url_or_urls, (str, os.PathLike)):
                raise
            raise ValueError(
                f"{str(image_url_or_urls)[:100]!r} is no file here, nor an address or base64 text of a picture."
            ) from error
        return upright_rgb(image) if isinstance(image, Image.Image) else image


class SeedImageProcessor(_AsShownMixin, TorchvisionBackend):
    """
    Makes `pixel_values` `(batch, 3, height, width)` from images, with torchvision.

    The image is squashed, not cropped, to `size`: one preprocessing everywhere, where the released scripts had two.
    Without torchvision use [`SeedImageProcessorPil`], whose result for PIL images is PIL's own to 3e-7.
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


__all__ = ["SeedImageProcessor", "SeedImageProcessorPil"]
