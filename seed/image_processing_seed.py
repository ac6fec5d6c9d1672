"""SEED's image processor: RGB, squash to a square by bicubic interpolation, scale, normalise (released recipe)."""

import os

from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling


class _PathsMixin:
    """Opens `pathlib` paths, too, where transformers knows texts only."""

    def fetch_images(self, image_url_or_urls):
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(each) for each in image_url_or_urls]
        is_path = isinstance(image_url_or_urls, os.PathLike)
        return super().fetch_images(os.fspath(image_url_or_urls) if is_path else image_url_or_urls)


class SeedImageProcessor(_PathsMixin, TorchvisionBackend):
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


class SeedImageProcessorPil(_PathsMixin, PilBackend):
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
