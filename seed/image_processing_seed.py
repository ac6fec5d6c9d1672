"""SEED's image processor: RGB, squash to a square by bicubic interpolation, scale, normalise (released recipe)."""

from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling


class SeedImageProcessor(TorchvisionBackend):
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


class SeedImageProcessorPil(PilBackend):
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
