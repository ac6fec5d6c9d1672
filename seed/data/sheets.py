"""Contact sheets: many small pictures with words under each, to be looked at."""

import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURES = 64  # of a sheet
COLUMNS = 8
CELL, MARGIN, LINE = 96, 6, 14


@dataclass
class SheetCell:
    """
    Args:
        image: RGB.
        title: under it, on one or two lines.
        note: a grey line under the title.
    """

    image: Image.Image
    title: str
    note: str = ""


def sheet_rows(count: int, seed: int, pictures: int = PICTURES) -> np.ndarray:
    """Choose which of `count` results are shown, in order, by the seed alone: good and bad ones alike."""
    return np.sort(np.random.default_rng([seed, 64]).permutation(count)[:pictures])


def draw_sheet(cells: Sequence[SheetCell], columns: int = COLUMNS) -> Image.Image:
    """Draw rows of pictures, scaled to one size, with titles and notes under them."""
    font = ImageFont.load_default(size=11)
    step_x, step_y = CELL + MARGIN, CELL + 3 * LINE + MARGIN
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (MARGIN + columns * step_x, MARGIN + rows * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    for number, cell in enumerate(cells):
        left, top = MARGIN + number % columns * step_x, MARGIN + number // columns * step_y
        picture = fit(cell.image, CELL)
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        lines = [(text, "black") for text in _two_lines(cell.title, draw, font)] + [(cell.note, "#777777")]
        for line, (text, color) in enumerate(lines):
            text = _shorten(plain_letters(text), draw, font)
            draw.text((left + (CELL - draw.textlength(text, font)) / 2, top + CELL + line * LINE), text, color, font)
    return sheet


def save_sheet(cells: Sequence[SheetCell], path: Path) -> None:
    """Write a PNG of 256 colours, all or nothing; small enough to be committed (64 pictures: under 400 KB)."""
    temporary = path.with_name(path.name + ".tmp")
    few_colors = draw_sheet(cells).quantize(256, dither=Image.Dither.NONE)
    few_colors.save(temporary, "PNG", optimize=True)
    os.replace(temporary, path)


def tile(images: Sequence[Image.Image], margin: int = 4) -> Image.Image:
    """Put images of one size side by side, in rows that make about a square."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + margin) - margin, rows * (height + margin) - margin), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image, (column * (width + margin), row * (height + margin)))
    return sheet


def plain_letters(text: str) -> str:
    """Remove the accents of letters: Pillow's own font has none and would draw boxes in their place."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def fit(image: Image.Image, side: int) -> Image.Image:
    """Return an image as RGB, scaled so that its longer side is `side`."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _two_lines(text: str, draw: ImageDraw.ImageDraw, font) -> list[str]:
    """Put as many words as fit on the first line, all others on the second."""
    words = text.split()
    fitting = len(words)
    while fitting > 1 and draw.textlength(" ".join(words[:fitting]), font) > CELL:
        fitting -= 1
    lines = [" ".join(words[:fitting]), " ".join(words[fitting:])]
    return [line for line in lines if line]


def _shorten(text: str, draw: ImageDraw.ImageDraw, font) -> str:
    while draw.textlength(text, font) > CELL + MARGIN // 2 and len(text) > 4:
        text = text.removesuffix("…")[:-1].rstrip() + "…"
    return text


__all__ = ["SheetCell", "draw_sheet", "fit", "plain_letters", "save_sheet", "sheet_rows", "tile"]
