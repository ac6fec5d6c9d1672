"""The pictures of a split as the evaluations see them: numbered, named, opened when their turn comes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ..data.image_text import SkipReport, iter_valid, load_image_text


@dataclass
class Picture:
    """
    Args:
        row: its number in the split, counting pictures that cannot be opened.
        id: the data's own id, else the row.
        name: the column `name` if the data has it, else the first caption.
        captions: all of them.
        image: RGB; None where it has been used and is not to be kept.
    """

    row: int
    id: str
    name: str
    captions: list[str]
    image: Image.Image | None


class PictureSet:
    """
    A split of image-text data, read with [`seed.data.image_text.load_image_text`].

    Args:
        source: file, folder or Hub id.
        split, format, image_root: as in `load_image_text`.
    """

    def __init__(
        self,
        source: str | Path,
        split: str | None = None,
        format: str | None = None,
        image_root: str | Path | None = None,
    ):
        self.source = str(source)
        self.split = split
        self.report = SkipReport()
        self.dataset = load_image_text(source, split=split, format=format, image_root=image_root, report=self.report)

    def batches(
        self, batch_size: int, rows: Sequence[int] | None = None, description: str = ""
    ) -> Iterator[list[Picture]]:
        """
        The pictures in order, with a progress bar; those that cannot be opened are left out and counted in `report`.

        Args:
            rows: only these numbers of the split.
        """
        # Counted once, however often the pictures are gone through.
        report = self.report if rows is None and not self.report.used else SkipReport()
        rows = range(len(self.dataset)) if rows is None else rows
        numbered = ({**self.dataset[int(row)], "row": int(row)} for row in rows)
        batch = []
        with tqdm(total=len(rows), desc=description, unit="picture", disable=not description) as progress:
            for example in iter_valid(numbered, report):
                batch.append(_picture(example))
                if len(batch) == batch_size:
                    yield batch
                    progress.update(len(batch))
                    batch = []
            if batch:
                yield batch
                progress.update(len(batch))
        if not report.used:
            raise ValueError(f"{self.source} has no picture that can be used. {report.summary()}")


def _picture(example: dict) -> Picture:
    captions = list(example["captions"])
    identity = example.get("id")
    return Picture(
        row=example["row"],
        id=str(example["row"] if identity is None else identity),
        name=str(example.get("name") or captions[0]),
        captions=captions,
        image=example["image"],
    )


def text_key(text: str) -> str:
    """What makes two texts the same text: letter case and spacing do not count (our choice)."""
    return " ".join(text.split()).casefold()


def distinct_texts(texts: Sequence[str]) -> list[str]:
    """One spelling of each text (see [`text_key`]), the first, in order."""
    spellings: dict[str, str] = {}
    for text in texts:
        spellings.setdefault(text_key(text), text)
    return list(spellings.values())
