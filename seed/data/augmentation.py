"""Views of one picture in other drawing styles, for training on few pictures (our choice; the paper uses none)."""

import random

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

# Outlines are one or two pixels wide. They would vanish if a larger picture were scaled to the size that models read,
# and larger pictures take more time. All pictures of the tiny data sets are smaller.
MAX_SIDE = 384


def augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """
    Return a random view of an icon-like RGB picture on white: moved, turned, recoloured, in outlines or flat colours.

    Sets of icons differ in style. A model that sees one concept in several styles has to look at shapes.

    Returns:
        An RGB picture of the size of `image`, scaled down if its longer side is over `MAX_SIDE`.
    """
    if max(image.size) > MAX_SIDE:
        scale = MAX_SIDE / max(image.size)
        image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), Image.Resampling.BICUBIC)
    image = _move(image, rng)
    style = rng.random()
    if style < 0.15:
        image = _outline(image)
    elif style < 0.35:
        image = _outline_over_flat(image, rng)
    elif style < 0.5:
        image = ImageOps.grayscale(image).convert("RGB")
    elif style < 0.8:
        image = _recolour(image, rng)
    if rng.random() < 0.15:
        image = _tint_background(image, rng)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return image


def _move(image: Image.Image, rng: random.Random) -> Image.Image:
    width, height = image.size
    if rng.random() < 0.2:
        image = ImageOps.mirror(image)
    scale = rng.uniform(0.75, 1.15)
    resized = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        resized = resized.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, fillcolor="white")
    slack = 0.12
    left = (width - resized.width) / 2 + rng.uniform(-slack, slack) * width
    top = (height - resized.height) / 2 + rng.uniform(-slack, slack) * height
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(resized, (round(left), round(top)))
    return canvas


def _edges(image: Image.Image) -> Image.Image:
    """Return a grey picture (`L`) that is white but for dark lines where colours meet."""
    border = max(2, image.width // 16)
    padded = ImageOps.expand(image, border, "white")
    channels = [channel.filter(ImageFilter.FIND_EDGES) for channel in padded.split()]
    strongest = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2])
    strongest = strongest.crop((border, border, border + image.width, border + image.height))
    return ImageOps.invert(strongest.point(lambda value: min(255, value * 3)))


def _outline(image: Image.Image) -> Image.Image:
    return _edges(image).convert("RGB")


def _outline_over_flat(image: Image.Image, rng: random.Random) -> Image.Image:
    flat = ImageOps.posterize(image.filter(ImageFilter.MedianFilter(3)), rng.choice([2, 3]))
    flat = ImageChops.lighter(flat, image)
    flat = Image.blend(flat, Image.new("RGB", image.size, "white"), rng.uniform(0.0, 0.7))
    return ImageChops.darker(flat, _edges(image).convert("RGB"))


def _recolour(image: Image.Image, rng: random.Random) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(rng.gauss(0, 25))
    image = Image.merge("HSV", (hue.point(lambda h: (h + shift) % 256), saturation, value)).convert("RGB")
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.3, 1.6))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4))


def _tint_background(image: Image.Image, rng: random.Random) -> Image.Image:
    """Flood the background from the corners with a light colour."""
    colour = tuple(rng.randint(190, 255) for _ in range(3))
    image = image.copy()
    for corner in ((0, 0), (image.width - 1, 0), (0, image.height - 1), (image.width - 1, image.height - 1)):
        ImageDraw.floodfill(image, corner, colour, thresh=40)
    return image
