"""The rows of a toy data set of pictures, for any test to import."""

import io

import numpy as np
from PIL import Image

NAMES = ["red apple", "green leaf", "blue sky", "Red  apple", "white snow", "black cat"]


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def toy_rows():
    """Six pictures, each of a colour of its own under noise; two have one name, differently spelled."""
    rng = np.random.default_rng(0)
    rows = []
    for number, name in enumerate(NAMES):
        color, noise = rng.integers(0, 156, 3), rng.integers(0, 100, (20, 24, 3))
        picture = Image.fromarray((color + noise).astype(np.uint8))
        captions = [name, f"a picture of {name.casefold()}"]
        rows.append(
            {"id": f"p{number}", "image": {"bytes": png(picture), "path": None}, "captions": captions, "name": name}
        )
    return rows
