"""Pictures of any mode as what they show: the one way in which all rooms and the image processors read them."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms, ImageOps


def upright_rgb(image: Image.Image) -> Image.Image:
    """
    An open picture as RGB, upright, on white where it was transparent.

    EXIF orientation is applied; CMYK goes through its embedded colour profile where it has one; 16-bit and float
    pictures are scaled to 8 bits, not clipped; of an animation the frame it stands at is taken.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except (struct.error, SyntaxError, ValueError, KeyError, TypeError):
        pass  # damaged EXIF data are no reason to lose the picture
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
    """Grey pictures with more than 8 bits, scaled so that full range stays full range.

    16-bit files (and mode `I`, in which Pillow opens some of them) span 0 .. 65535. Mode `F` has no agreed range:
    0 .. 1 where all values lie in it, else 0 .. 255 or 0 .. 65535, whichever holds the largest value (our choice).
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
            pass  # a damaged profile is no reason to lose the picture; the plain formula below needs none
    return image.convert("RGB")


__all__ = ["upright_rgb"]
