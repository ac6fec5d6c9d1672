"""The pictures of a split for the evaluations: numbered, named, and opened when their turn comes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ..data.image_text import SkipReport, iter_valid, load_image_text


@dataclass
class Picture:
    """
    A picture of a split.

    Args:
        row: its number in the split; pictures that cannot be opened are counted too.
        id: the id that the data give it, else the row.
        name: the column `name` if the data have one, else the first caption.
        captions: all of its captions.
        image: the picture in RGB; None once it was used and is not needed any more.
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
        split, format, image_root: see `load_image_text`.
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
        Yield the pictures in order, with a progress bar; those that cannot be opened are left out and counted in
        `report`.

        Args:
            rows: numbers of the pictures to take; None takes all of the split.
            description: the text of the progress bar; "" shows none.

        Raises:
            ValueError: no picture can be opened.
        """
        # They are counted once, however often the pictures are read.
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
    """Return a key that is the same for texts that differ only in letter case and spacing (our choice)."""
    return " ".join(text.split()).casefold()


def distinct_texts(texts: Sequence[str]) -> list[str]:
    """Return the first spelling of each text (see [`text_key`]), in order."""
    spellings: dict[str, str] = {}
    for text in texts:
        spellings.setdefault(text_key(text), text)
    return list(spellings.values())
