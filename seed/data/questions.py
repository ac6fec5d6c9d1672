"""
Questions about pictures in one schema: `question`, `answers` (each of them right), `kind`, and `image` or `codes`.

Two sources: the emoji set, whose questions `emoji_questions` makes by rules, and easy-vqa, a published set of shapes.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .codes import CodesMetadata, check_made_by, codes_schema, read_codes
from .colors import COLORS, dominant_color
from .image_text_sources import beside, caption_list

# What the emoji's categories are called in answers; `Component` (parts of emoji) is asked nothing about.
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
# Subcategories "animal-bird", "face-smiling" ... answer "which kind of animal is it?".
KINDS_OF = ("animal", "face", "food", "hand", "person", "place", "plant", "transport")
# People's colour is not asked for, and a flag has none.
WITHOUT_COLOR = ("People & Body", "Flags")
_COLOR_WORDS = {*COLORS, "white", "gray", "golden", "gold", "silver", "rainbow", "colored", "coloured"}

EASY_VQA_COLORS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
EASY_VQA_SHAPES = {"circle", "rectangle", "triangle"}


def emoji_questions(row: dict) -> list[dict]:
    """
    The questions that a picture of the emoji set supports.

    - name: "what is it?", with `names` as answers, the first of them the Unicode short name.
    - category: "which kind of thing is it?", one of the nine `CATEGORIES`.
    - subcategory: "which kind of animal (face, food, ...) is it?", the rest of Unicode's subcategory, where that begins
      with one of `KINDS_OF` and does not end with "other".
    - colour: "which colour is the NAME?", what [`dominant_color`] finds in the pixels; asked where it finds one, but
      not of people and flags, nor where the name itself speaks of a colour.

    Args:
        row: of the emoji set, with `image` as `{"bytes": ...}`.

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
    # "keycap: 1", "flag: uganda": a colon makes no name to put into a question.
    return ":" in name or not _COLOR_WORDS.isdisjoint(re.findall(r"\w+", name.lower()))


def easy_vqa_questions(split: str) -> Iterator[dict]:
    """
    The questions of easy-vqa (Victor Zhou, MIT, PyPI `easy-vqa`): coloured shapes on grey, 64 x 64 pixels.

    Args:
        split: "train" (38,575 questions on 4,000 pictures) or "test" (9,673 on 1,000).

    Yields:
        Rows as of [`emoji_questions`]; `kind` is "yes/no", "colour" or "shape".

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: another split.
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


# Files ---------------------------------------------------------------------------------------------------------------

_TEXTS = ("id", "question", "kind", "license", "attribution")


def write_questions(
    rows: Iterable[dict],
    path: str | Path,
    codes: dict[str, Sequence[int]] | None = None,
    metadata: CodesMetadata | None = None,
) -> int:
    """
    Writes questions to a Parquet file, all or nothing.

    Args:
        rows: as of [`emoji_questions`].
        codes, metadata: of every picture by its `id`, and what made them; then `codes` stands in place of `image`, and
            the file can be trained on.

    Returns:
        Number of questions.

    Raises:
        ValueError: no questions; a picture without codes.
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
    # Questions of one picture repeat its bytes; a dictionary as large as all of them stores each once.
    pq.write_table(table, temporary, dictionary_pagesize_limit=2**28, compression="zstd")
    os.replace(temporary, path)
    return len(rows)


def _schema(metadata: CodesMetadata | None) -> pa.Schema:
    """The table's schema; pictures are such that `datasets.load_dataset` opens them."""
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    features = {name: Value("string") for name in _TEXTS} | {"answers": List(Value("string"))}
    if metadata is None:
        return Features(features | {"image": ImageFeature()}).arrow_schema
    codes = codes_schema(metadata, with_captions=False)
    schema = Features(features).arrow_schema.remove_metadata().append(codes.field("codes"))
    return schema.with_metadata(codes.metadata)


class QuestionFile:
    """
    Questions, and the distinct pictures that they are about.

    Args:
        path: a Parquet file, or a folder of them.
        split: the file's name without ".parquet", in a folder.
        image_root: folder of the pictures that the file names by paths; the file's own if None.
        words_only: leaves the pictures (and codes) unread, where questions and answers are all that is asked for.

    Attributes:
        questions: dicts of `question`, `answers`, `kind`, and `picture`, a number.
        pictures: `{"bytes": ..., "path": ...}` of each picture; None if the file holds codes.
        codes: `(pictures, num_codes)`; None if the file holds pictures. Call `check_codes` first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing or of another type, or there are no questions; a picture outside of
            `image_root`.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        image_root: str | Path | None = None,
        words_only: bool = False,
    ):
        self.path = _file_of(Path(path), split)
        found = pq.read_schema(self.path).names
        answers = "answers" if "answers" in found else "answer"
        picture = "codes" if "codes" in found else "image"
        missing = [name for name in ("question", answers, picture) if name not in found]
        if missing:
            raise ValueError(
                f"{self.path}: has no column {' or '.join(map(repr, missing))}; it has {', '.join(found)}. Questions "
                "need `question`, `answers` (or `answer`), and `image` or `codes`."
            )
        columns = ["question", answers, picture, *(name for name in ("id", "kind") if name in found)]
        if words_only:
            columns.remove(picture)
        root = self.path.parent if image_root is None else Path(image_root)
        self._has_codes = picture == "codes"
        numbers: dict[str, int] = {}
        self.pictures, self.questions, self._first_rows = [], [], []
        number = -1
        for number, row in enumerate(_rows(self.path, columns)):
            given = caption_list(row[answers])
            if not given or not caption_list(row["question"]):
                continue
            shown = row.get(picture)
            if not self._has_codes:
                shown = _picture(shown, root, self.path)
            key = json.dumps(shown) if self._has_codes else _picture_key(shown)
            if key not in numbers:
                numbers[key] = len(numbers)
                self.pictures.append(shown)
                self._first_rows.append(number)
            self.questions.append(
                {
                    "id": str(row.get("id", number)),
                    "question": row["question"],
                    "answers": given,
                    "kind": row.get("kind") or "all",
                    "picture": numbers[key],
                }
            )
        if not self.questions:
            raise ValueError(f"{self.path}: holds no questions.")
        if left_out := number + 1 - len(self.questions):
            print(f"{self.path}: {left_out} of {number + 1} rows have no question or no answer and are left out.")
        self.codes = None

    def check_codes(self, image_tokenizer_hash: str | None, codebook_size: int, num_codes: int):
        """
        The codes of the distinct pictures, `(pictures, num_codes)`; None if the file holds pictures.

        Raises:
            ValueError: codes of another image tokenizer, or that do not say which made them, or out of range.
        """
        if not self._has_codes:
            return None
        if image_tokenizer_hash is not None:
            check_made_by(self.path, image_tokenizer_hash, "this model")
        self.codes = read_codes(self.path, codebook_size, num_codes).codes[self._first_rows]
        return self.codes


def _file_of(path: Path, split: str | None) -> Path:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        found = ", ".join(file.stem for file in files) or "none"
        if split is None and len(files) != 1:
            raise ValueError(f"{path}: pass split, one of its Parquet files' names: {found}.")
        path = files[0] if split is None else path / f"{split}.parquet"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; the folder's splits are {found}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file, or a truncated one ({error}).") from error
    return path


def _rows(path: Path, columns: list[str]) -> Iterator[dict]:
    """A few rows at a time: those of one picture repeat its bytes, which are to be kept once."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=columns):
        yield from batch.to_pylist()


def _picture(value, root: Path, source: Path) -> dict:
    """A picture as `datasets` stores it, as bytes or as a path relative to `root`."""
    if isinstance(value, bytes):
        value = {"bytes": value}
    elif isinstance(value, str):
        value = {"path": value}
    elif value is not None and not (isinstance(value, dict) and value.keys() & {"bytes", "path"}):
        raise ValueError(f"{source}: column 'image' holds {value!r:.80}; expected the bytes or the path of a picture.")
    value = {"bytes": None, "path": None} | (value or {})
    return beside(value, root, source)


def _picture_key(picture: dict) -> str:
    return hashlib.sha256(picture["bytes"] or str(picture["path"]).encode()).hexdigest()


__all__ = ["QuestionFile", "easy_vqa_questions", "emoji_questions", "write_questions"]
