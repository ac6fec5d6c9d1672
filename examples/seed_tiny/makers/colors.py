"""A rule that names the colour of a drawing on white paper by its pixels, for questions about colours."""

import numpy as np
from PIL import Image

# The rule can give these names; white is the paper's colour and is never given.
COLORS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "yellow")

PAPER = 240  # of 255: pixels that are at least so light in all three channels, and joined to the border, are paper
FLAT = 32  # of 255: pixels that differ more from a neighbour in any channel lie on an edge
MIN_DRAWN = 0.05  # least share of the picture's pixels that is drawn, edges left out
MIN_SHARE = 0.65  # least share of the colour among the drawn pixels that are not outline
MIN_SHARE_OF_ALL = 0.4  # least share of the colour among all drawn pixels

# These are hues in degrees, with gaps between them: a pixel in a gap has no name.
_HUES = {"yellow": (41, 65), "green": (80, 160), "blue": (195, 250), "purple": (260, 300)}


def dominant_color(image: Image.Image) -> str | None:
    """
    Return the one colour of a drawing, or None where it is not clear.

    The rule is our choice. What is nearly white and joined to the border is paper, and the rest is drawn. Pixels on an
    edge do not count, because they mix two colours (black lines on white would be grey). Every other drawn pixel gets
    one of `COLORS`, "white" or no name, by fixed bands of hue, saturation and value with gaps between them. Black is
    taken for outline unless nearly everything is black. A colour is named if it has at least 65% of the drawn pixels
    that are not outline and 40% of all drawn pixels. White is never named, nor is any colour where less than 5% of the
    picture is drawn (thin lines).

    Args:
        image: an RGB picture, drawn on white.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    drawn = pixels[~_paper(pixels) & _flat(pixels)]
    if len(drawn) < MIN_DRAWN * pixels.shape[0] * pixels.shape[1]:
        return None
    shares = {name: mask.mean() for name, mask in _named(drawn).items()}
    if shares["black"] >= MIN_SHARE:
        return "black"
    not_outline = 1 - shares.pop("black")
    color = max(shares, key=shares.get)
    clear = shares[color] >= MIN_SHARE * not_outline and shares[color] >= MIN_SHARE_OF_ALL
    return color if clear and color != "white" else None


def _paper(pixels: np.ndarray) -> np.ndarray:
    """Return where the picture shows the paper it is drawn on, `(height, width)` of bool."""
    light = np.pad((pixels >= PAPER).all(axis=-1), 1, constant_values=True)
    paper = np.zeros_like(light)
    paper[0], paper[-1], paper[:, 0], paper[:, -1] = True, True, True, True
    while True:
        spread = paper.copy()
        spread[1:] |= paper[:-1]
        spread[:-1] |= paper[1:]
        spread[:, 1:] |= paper[:, :-1]
        spread[:, :-1] |= paper[:, 1:]
        spread &= light
        if (spread == paper).all():
            return paper[1:-1, 1:-1]
        paper = spread


def _flat(pixels: np.ndarray) -> np.ndarray:
    """Return where a pixel is nearly equal to its four neighbours, `(height, width)` of bool."""
    flat = np.ones(pixels.shape[:2], dtype=bool)
    down = np.abs(np.diff(pixels, axis=0)).max(axis=-1) <= FLAT
    right = np.abs(np.diff(pixels, axis=1)).max(axis=-1) <= FLAT
    flat[1:] &= down
    flat[:-1] &= down
    flat[:, 1:] &= right
    flat[:, :-1] &= right
    return flat


def _named(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return which of the pixels `(pixels, 3)` have each colour; a pixel has at most one."""
    hue, saturation, value = _hsv(pixels)
    vivid = (saturation >= 0.4) & (value >= 0.35)
    reddish = (hue <= 10) | (hue >= 345)
    named = {
        "black": value < 0.25,
        "white": (saturation < 0.1) & (value > 0.92),
        "grey": (saturation < 0.15) & (value >= 0.3) & (value <= 0.88),
        "red": vivid & reddish & (saturation >= 0.65),
        "orange": vivid & (hue >= 18) & (hue <= 37) & (value >= 0.8) & (saturation >= 0.6),
        "brown": (saturation >= 0.35) & (hue >= 8) & (hue <= 38) & (value >= 0.25) & (value <= 0.65),
        "pink": (value >= 0.8) & (saturation >= 0.2) & (saturation <= 0.55) & ((hue >= 315) | (hue <= 5)),
    }
    named |= {name: vivid & (hue >= low) & (hue <= high) for name, (low, high) in _HUES.items()}
    named["pink"] |= vivid & (hue >= 310) & (hue < 340) & (value >= 0.7)
    named["yellow"] &= value >= 0.7
    return named


def _hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hue in degrees, saturation and value in [0, 1], of pixels `(pixels, 3)` in [0, 255]."""
    red, green, blue = (pixels[:, channel] / 255 for channel in range(3))
    value, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = value - least
    safe = np.where(chroma > 0, chroma, 1)
    sixth = np.where(
        value == red,
        ((green - blue) / safe) % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return np.where(chroma > 0, 60 * sixth, 0), chroma / np.where(value > 0, value, 1), value


__all__ = ["COLORS", "dominant_color"]
