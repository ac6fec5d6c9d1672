"""The table of drawn pictures that build_emoji.py writes: its schema, and how it is drawn and saved."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .iconify import draw_all

TEXT_COLUMNS = (
    "id", "style", "license", "attribution", "source", "icon", "emoji", "codepoints", "concept", "category",
    "subcategory", "skin_tone", "name",
)  # fmt: skip
LIST_COLUMNS = ("names", "keywords", "captions")


def features():
    """Return the `datasets.Features` of the table; `image` is a PNG, and `captions` are the texts to train on."""
    from datasets import Features, Image, List, Value

    columns = {name: Value("string") for name in TEXT_COLUMNS}
    columns.update({name: List(Value("string")) for name in LIST_COLUMNS})
    return Features({**columns, "split": Value("string"), "image": Image()})


def draw_rows(
    rows: list[dict], size: int, workers: int = 1, progress: Callable[[Iterator], Iterable] = iter
) -> tuple[list[dict], list[str]]:
    """Return the rows with `image`, a PNG of `size` x `size` pixels, in place of `svg`.

    Returns:
        The rows whose picture is not blank, and the ids of those that were left out because it is.
    """
    pictures = draw_all((row["svg"] for row in rows), size, workers, progress)
    drawn, blank = [], []
    for row, picture in zip(rows, pictures, strict=True):
        if picture is None:
            blank.append(row["id"])
            continue
        drawn.append({**{key: value for key, value in row.items() if key != "svg"}, "image": picture})
    return drawn, blank


def write_rows(rows: list[dict], path: str | Path) -> None:
    """Write rows to a Parquet file, first under a temporary name, so that a killed run leaves no half file."""
    from datasets import Dataset

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    scratch = path.with_name(path.name + ".part")
    Dataset.from_list(table, features=features()).to_parquet(scratch)
    os.replace(scratch, path)
