"""
Questions about pictures in one schema: `question`, `answers` (all of them right), `kind`, and `image` or `codes`.

There are two sources: the emoji set, whose questions `emoji_questions` makes by rules, and easy-vqa, a published set of
questions about coloured shapes. [`~seed.data.questions.QuestionFile`] reads what [`write_questions`] writes.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from seed.data.codes import CodesMetadata, codes_schema

from .colors import COLORS, dominant_color

# Answers use these names for the emoji's categories. No question asks about `Component` (parts of emoji).
CATEGORIES = {
    "Smileys & Emotion": "smiley",
    "People & Body": "person",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}
# The subcategory "animal-bird" answers "which kind of animal is it?", and so on.
KINDS_OF = ("animal", "face", "food", "hand", "person", "place", "plant", "transport")
# No question asks for the colour of people; a flag has no single colour.
WITHOUT_COLOR = ("People & Body", "Flags")
_COLOR_WORDS = {*COLORS, "white", "gray", "golden", "gold", "silver", "rainbow", "colored", "coloured"}

EASY_VQA_COLORS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
EASY_VQA_SHAPES = {"circle", "rectangle", "triangle"}


def emoji_questions(row: dict) -> list[dict]:
    """
    Return the questions that a picture of the emoji set supports.

    - name: "what is it?" has `names` as answers, of which the first is the Unicode short name.
    - category: "which kind of thing is it?" has one of the nine `CATEGORIES` as its answer.
    - subcategory: "which kind of animal (face, food, ...) is it?" has the rest of Unicode's subcategory as its answer.
      It is asked where the subcategory begins with one of `KINDS_OF` and does not end with "other".
    - colour: "which colour is the NAME?" has the colour that [`dominant_color`] finds in the pixels as its answer. It
      is asked where one is found, but not of people and flags, nor where the name itself speaks of a colour.

    Args:
        row: a row of the emoji set, with `image` as `{"bytes": ...}`.

    Returns:
        Rows of `id`, `image`, `question`, `answers`, `kind`, `license`, `attribution`.
    """
    asked = [("name", "what is it?", list(row["names"]))]
    if category := CATEGORIES.get(row["category"]):
        asked.append(("category", "which kind of thing is it?", [category]))
        kind, _, rest = row["subcategory"].partition("-")
        if kind in KINDS_OF and rest not in ("", "other"):
            asked.append(("subcategory", f"which kind of {kind} is it?", [rest.replace("-", " ")]))
        if row["category"] not in WITHOUT_COLOR and not _speaks_of_color(row["name"]):
            if color := dominant_color(Image.open(io.BytesIO(row["image"]["bytes"]))):
                asked.append(("colour", f"which colour is the {row['name']}?", [color]))
    shared = {key: row[key] for key in ("id", "image", "license", "attribution")}
    return [shared | {"kind": kind, "question": question, "answers": answers} for kind, question, answers in asked]


def _speaks_of_color(name: str) -> bool:
    # A name with a colon, such as "keycap: 1" or "flag: uganda", does not fit into a question.
    return ":" in name or not _COLOR_WORDS.isdisjoint(re.findall(r"\w+", name.lower()))


def easy_vqa_questions(split: str) -> Iterator[dict]:
    """
    Yield the questions of easy-vqa (Victor Zhou, MIT, PyPI `easy-vqa`): coloured shapes on grey, 64 x 64 pixels.

    Args:
        split: "train" (38,575 questions on 4,000 pictures) or "test" (9,673 on 1,000).

    Yields:
        Rows with the columns of [`emoji_questions`]; `kind` is "yes/no", "colour" or "shape".

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: `split` is neither of the two.
    """
    try:
        import easy_vqa
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("easy-vqa is not installed: run `pip install easy-vqa`.") from error
    if split not in ("train", "test"):
        raise ValueError(f"easy-vqa has the splits train and test, not {split!r}.")
    questions, answers, pictures = getattr(easy_vqa, f"get_{split}_questions")()
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    images: dict[int, dict] = {}
    for question, answer, picture in zip(questions, answers, pictures, strict=True):
        if picture not in images:
            images[picture] = {"bytes": Path(paths[picture]).read_bytes(), "path": None}
        yield {
            "id": f"easy-vqa/{split}/{picture}",
            "image": images[picture],
            "question": question,
            "answers": [answer],
            "kind": _easy_vqa_kind(answer),
            "license": "MIT",
            "attribution": "Victor Zhou, easy-vqa",
        }


def _easy_vqa_kind(answer: str) -> str:
    if answer in EASY_VQA_COLORS:
        return "colour"
    return "shape" if answer in EASY_VQA_SHAPES else "yes/no"


_TEXTS = ("id", "question", "kind", "license", "attribution")


def write_questions(
    rows: Iterable[dict],
    path: str | Path,
    codes: dict[str, Sequence[int]] | None = None,
    metadata: CodesMetadata | None = None,
) -> int:
    """
    Write questions to a Parquet file, all or nothing.

    Args:
        rows: questions as [`emoji_questions`] returns them.
        codes: the codes of every picture by its `id`. They take the place of `image`, and the file can be trained on.
        metadata: what made the codes.

    Returns:
        The number of questions.

    Raises:
        ValueError: there are no questions, or a picture has no codes.
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"There are no questions to write to {path}.")
    schema = _schema(metadata)
    if codes is not None:
        if absent := {row["id"] for row in rows} - codes.keys():
            raise ValueError(f"{len(absent)} pictures have no codes, such as {min(absent)!r}.")
        rows = [row | {"codes": list(codes[row["id"]])} for row in rows]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)
    # The questions of one picture repeat its bytes; a large enough dictionary page stores each picture once.
    pq.write_table(table, temporary, dictionary_pagesize_limit=2**28, compression="zstd")
    os.replace(temporary, path)
    return len(rows)


def _schema(metadata: CodesMetadata | None) -> pa.Schema:
    """Return the table's schema, by which `datasets.load_dataset` opens the pictures."""
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    features = {name: Value("string") for name in _TEXTS} | {"answers": List(Value("string"))}
    if metadata is None:
        return Features(features | {"image": ImageFeature()}).arrow_schema
    codes = codes_schema(metadata, with_captions=False)
    schema = Features(features).arrow_schema.remove_metadata().append(codes.field("codes"))
    return schema.with_metadata(codes.metadata)


__all__ = ["easy_vqa_questions", "emoji_questions", "write_questions"]
