"""Parquet files of questions about pictures: `question`, `answers` (each is right), and `image` or `codes`."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from .codes import check_made_by, read_codes, read_schema
from .image_text_sources import beside, caption_list


class QuestionFile:
    """
    Questions, and the distinct pictures that they are about.

    Args:
        path: a Parquet file, or a folder of them.
        split: the name of the file in a folder, without ".parquet". It is needed if the folder holds several files.
        image_root: the folder that the paths of pictures are relative to. The default is the file's folder.
        words_only: read questions and answers only, not the pictures or codes.

    Attributes:
        questions: dicts of `id`, `question`, `answers`, `kind`, and `picture`, the number of the picture.
        pictures: each picture as `{"bytes": ..., "path": ...}`, or its codes as the file has them.
        codes: the pictures' codes, `(pictures, num_codes)`, once `check_codes` has read them; else None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not Parquet; a column is missing or of another type; there are no questions; or a
            picture is outside of `image_root`.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        image_root: str | Path | None = None,
        words_only: bool = False,
    ):
        self.path = _file_of(Path(path), split)
        found = read_schema(self.path).names
        answers = "answers" if "answers" in found else "answer"
        picture = "codes" if "codes" in found else "image"
        missing = [name for name in ("question", answers, picture) if name not in found]
        if missing:
            raise ValueError(
                f"{self.path} has no column {' and no column '.join(map(repr, missing))}; it has {', '.join(found)}. "
                "Questions need `question`, `answers` (or `answer`), and `image` or `codes`."
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
            raise ValueError(f"{self.path} holds no questions.")
        if left_out := number + 1 - len(self.questions):
            print(f"{self.path}: {left_out} of {number + 1} rows have no question or no answer and are left out.")
        self.codes = None

    def check_codes(self, image_tokenizer_hash: str | None, codebook_size: int, num_codes: int):
        """
        Return the codes of the distinct pictures, `(pictures, num_codes)`; None if the file holds pictures.

        Args:
            image_tokenizer_hash: the `codes_hash` of the image tokenizer that must have made the codes; None if any
                image tokenizer may have made them.
            codebook_size, num_codes: see [`read_codes`].

        Raises:
            ValueError: another image tokenizer made the codes, the file does not say which one did, or a code is out of
                range.
        """
        if not self._has_codes:
            return None
        if image_tokenizer_hash is not None:
            check_made_by(self.path, image_tokenizer_hash, "this model")
        self.codes = read_codes(self.path, codebook_size, num_codes).codes[self._first_rows]
        return self.codes


def _file_of(path: Path, split: str | None) -> Path:
    """Return the Parquet file of a split, or the path of a file as it is."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
        found = ", ".join(file.stem for file in files) or "none"
        if split is None and len(files) != 1:
            raise ValueError(f"{path}: pass split, the name of one of its Parquet files: {found}.")
        path = files[0] if split is None else path / f"{split}.parquet"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; the folder's splits are {found}.")
    return path


def _rows(path: Path, columns: list[str]) -> Iterator[dict]:
    """Yield the rows of a file. A few are read at a time, because rows about one picture repeat its bytes."""
    for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=columns):
        yield from batch.to_pylist()


def _picture(value, root: Path, source: Path) -> dict:
    """Return a picture as `{"bytes", "path"}`, from that, from bytes, or from a path that is relative to `root`."""
    if isinstance(value, bytes):
        value = {"bytes": value}
    elif isinstance(value, str):
        value = {"path": value}
    elif value is not None and not (isinstance(value, dict) and value.keys() & {"bytes", "path"}):
        raise ValueError(f"{source}: the column 'image' holds {value!r:.80}; expected a picture's bytes or path.")
    value = {"bytes": None, "path": None} | (value or {})
    return beside(value, root, source)


def _picture_key(picture: dict) -> str:
    """Return a hash that two pictures share if they are the same."""
    return hashlib.sha256(picture["bytes"] or str(picture["path"]).encode()).hexdigest()


__all__ = ["QuestionFile"]
