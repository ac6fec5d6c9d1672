"""Write the results of an evaluation: a table to print, metrics as JSON, predictions as Parquet."""

import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..files_seed import replacing_file, write_atomically

LIBRARIES = ("seed-vision", "torch", "transformers", "diffusers", "numpy", "pillow")


def provenance() -> dict:
    """Return the command, and the versions of Python and the libraries that run it."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None  # a checkout that is not installed
    return {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "versions": versions}


def write_json(path: Path, values: dict) -> None:
    """Write a report as a JSON file, all or nothing, with its keys in their own order."""
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys to a Parquet file, all or nothing."""
    with replacing_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)


def format_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """
    Format a table in Markdown, with aligned columns.

    Args:
        rows: cells are text, numbers (printed with three digits) or None (printed as a dash).
    """
    cells = [list(header)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [_line(row, widths) for row in cells]
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _line(row: list[str], widths: list[int]) -> str:
    aligned = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
    return "| " + " | ".join(aligned) + " |"
