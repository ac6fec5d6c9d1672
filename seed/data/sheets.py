"""Contact sheets: many small pictures with words under each, for people to look at."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files_seed import replacing_file

PICTURES = 64  # on a sheet
COLUMNS = 8
CELL, MARGIN, LINE = 96, 6, 14  # pixels


@dataclass
class SheetCell:
    """
    A picture on a contact sheet, with its words.

    Args:
        image: the picture, in RGB.
        title: the words under it, on one or two lines.
        note: a grey line under the title.
    """

    image: Image.Image
    title: str
    note: str = ""


def sheet_rows(count: int, seed: int, pictures: int = PICTURES) -> np.ndarray:
    """Choose which of `count` results a sheet shows, in order. The seed alone decides, not how good they are."""
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
    """Write a sheet whole or not at all. It is a PNG of 256 colours, so that 64 pictures take less than 400 KB."""
    few_colors = draw_sheet(cells).quantize(256, dither=Image.Dither.NONE)
    with replacing_file(path) as temporary:
        few_colors.save(temporary, "PNG", optimize=True)


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
    """Remove the accents of letters, because Pillow's own font lacks them and would draw boxes instead."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def fit(image: Image.Image, side: int) -> Image.Image:
    """Return an image as RGB, scaled so that its longer side is `side`."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _two_lines(text: str, draw: ImageDraw.ImageDraw, font) -> list[str]:
    """Split a text into one or two lines. The first holds as many words as fit, the second all others."""
    words = text.split()
    fitting = len(words)
    while fitting > 1 and draw.textlength(" ".join(words[:fitting]), font) > CELL:
        fitting -= 1
    lines = [" ".join(words[:fitting]), " ".join(words[fitting:])]
    return [line for line in lines if line]


def _shorten(text: str, draw: ImageDraw.ImageDraw, font) -> str:
    """Cut a text to the width of a cell, with an ellipsis at its end."""
    while draw.textlength(text, font) > CELL + MARGIN // 2 and len(text) > 4:
        text = text.removesuffix("…")[:-1].rstrip() + "…"
    return text


__all__ = ["SheetCell", "draw_sheet", "fit", "plain_letters", "save_sheet", "sheet_rows", "tile"]
