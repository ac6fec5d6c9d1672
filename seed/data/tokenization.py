"""Bulk tokenisation: many pictures to one Parquet file of codes; broken ones named, a killed run continued."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from ..files_seed import write_atomically
from ..image_processing_seed import SeedImageProcessorPil
from ..modeling_seed import SeedModel
from ..repository_seed import SeedRepository
from .codes import CodesMetadata, codes_schema
from .image_text import SkipReport, load_image_text, picture_file_states
from .image_text_sources import TABLE_SUFFIXES, captions_of_folders, sidecar_captions, sidecar_of
from .images import ImageSource, InvalidImageError, images_below, list_images, load_image

# Files that hold image-text data; everything else that is named is a picture or a folder of pictures.
DATA_SUFFIXES = (".parquet", ".tar", ".json")
# Pictures per part file: what a kill costs at most, against the number of files while a long run goes on.
ROWS_PER_PART = 256
# Of the schema's metadata: of which run the file is the result.
RUN_KEY = b"seed_run"
_FILES = "picture_files"


@dataclass
class Picture:
    """
    Args:
        id: path, the data set's own id, or the row number there; printable, see [`_printable`].
        source: for [`load_image`].
        captions: of image-text data.
    """

    id: str
    source: ImageSource
    captions: list[str] | None = None


class PictureList(Sequence):
    """
    Pictures to tokenise, numbered, opened when their turn comes.

    Args:
        paths: images and folders of images, with the captions that `metadata.jsonl`, `metadata.csv` or a `.txt` beside
            a picture has for them; or image-text data (`.parquet`, `.tar`, `.json`, `.tsv`, `.csv`, a folder of the
            first two).
        image_root: folder that file names in image-text data are relative to; default: the folder of the data.
        split: of image-text data, as in [`load_image_text`].

    `fingerprint` tells the pictures from others by the names, sizes and times of the files that were named,
    `file_states` by those of the pictures that such files name in turn.
    `not_downloaded` counts the rows of a table whose pictures are not there.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder without images; both kinds at once; image-text data without the expected columns; a split
            that is missing or unknown.
    """

    def __init__(self, paths: Sequence[str | Path], image_root: str | Path | None = None, split: str | None = None):
        data = [path for path in paths if _holds_data(path)]
        if data and len(data) < len(paths):
            other = next(path for path in paths if path not in data)
            raise ValueError(f"{data[0]} holds image-text data, {other} does not; tokenise them one after the other.")
        self._are_rows, self.has_captions = bool(data), bool(data)
        report = SkipReport()
        if data:
            self._rows = load_image_text(paths, split=split, image_root=image_root, report=report)
            files = [file for path in paths for file in _data_files(Path(path))]
        elif split is not None:
            raise ValueError(
                f"split is {split!r}, but {paths[0]} is a picture or a folder of pictures, which has no splits; leave "
                "split out, or name image-text data."
            )
        else:
            self._rows = list_images(paths)
            self._captions, metadata = captions_of_folders(paths)
            sidecars = [sidecar for image in self._rows if (sidecar := sidecar_of(image)).is_file()]
            self.has_captions = bool(sidecars or self._captions)
            files = [*self._rows, *sidecars, *metadata]
        self.not_downloaded = report.skipped
        self.fingerprint = _fingerprint(files, image_root, split)
        self.file_states = picture_file_states(self._rows) if data else ""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Picture:
        row = self._rows[number]
        if not self._are_rows:
            captions = None
            if self.has_captions:
                captions = self._captions.get(os.path.abspath(row)) or sidecar_captions(row)
            return Picture(id=_printable(str(row)), source=row, captions=captions)
        name = row.get("id")
        return Picture(id=str(number if name is None else name), source=row["image"], captions=row["captions"])


@dataclass
class TokenizationSummary:
    """
    Args:
        output: the file of codes.
        tokenized: pictures in it.
        skipped: `(row, id, reason)` of the pictures that could not be opened.
        skipped_file: where they are listed; None if there are none.
        continued_from: pictures that an earlier run of the same command had done.
    """

    output: Path
    tokenized: int = 0
    skipped: list[tuple[int, str, str]] = field(default_factory=list)
    skipped_file: Path | None = None
    continued_from: int = 0


def load_image_tokenizer(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[SeedModel, SeedImageProcessorPil]:
    """
    The image tokenizer that a model argument names, without its text branch, and its image processor.

    Args:
        name: a SEED repository, or an image tokenizer's own folder or Hub id.
        dtype: codes that are stored or compared are made in float32 unless asked otherwise.
    """
    folder = SeedRepository(name).image_tokenizer_folder()
    model = SeedModel.from_pretrained(folder, use_text_branch=False, dtype=dtype).eval().to(device)
    return model, SeedImageProcessorPil.from_pretrained(folder)


def tokenize_pictures(
    pictures: PictureList,
    output: str | Path,
    model: SeedModel,
    image_processor,
    batch_size: int = 32,
    progress: bool = True,
) -> TokenizationSummary:
    """
    Writes the codes of pictures to a Parquet file, in their order.

    Pictures that cannot be opened are left out and listed in a file beside `output`: of `codes.parquet` in
    `codes.skipped.jsonl`. Codes are kept in a folder (`codes.parquet.partial`) until all are there, so that the same
    call after a kill goes on where it stopped. A picture's codes do not depend on the batch it is in (near-ties of two
    codes excepted).

    Args:
        output: the Parquet file; columns `id`, `codes` and, of image-text data, `captions`; what made them is in its
            schema's metadata (see [`CodesMetadata`]).
        model, image_processor: see [`load_image_tokenizer`].

    Raises:
        ValueError: `output`, or an unfinished run for it, is of other pictures or of another model; or no picture could
            be opened.
    """
    output = Path(output)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    metadata = CodesMetadata.of(model, image_processor)
    run = dataclasses.asdict(metadata) | {"pictures": pictures.fingerprint, "rows_per_part": ROWS_PER_PART}
    run |= {_FILES: pictures.file_states}
    partial = output.with_name(output.name + ".partial")
    if _is_complete(output, run):
        shutil.rmtree(partial, ignore_errors=True)
        return _summary_of(output)
    _start_or_continue(partial, run)

    schema = codes_schema(metadata, pictures.has_captions).append(pa.field("error", pa.string()))
    parts = [(start, partial / f"{start:010d}.parquet") for start in range(0, len(pictures), ROWS_PER_PART)]
    done = sum(min(ROWS_PER_PART, len(pictures) - start) for start, part in parts if part.exists())
    with tqdm(total=len(pictures), initial=done, unit="img", disable=not progress, desc="tokenize") as bar:
        for start, part in parts:
            if not part.exists():
                rows = range(start, min(start + ROWS_PER_PART, len(pictures)))
                _write_part(part, schema, _tokenize_rows(pictures, rows, model, image_processor, batch_size, bar))
    summary = _assemble(output, [part for _, part in parts], schema.remove(schema.get_field_index("error")), run)
    summary.continued_from = done
    shutil.rmtree(partial)
    if not summary.tokenized:
        raise ValueError(f"None of the {len(pictures)} pictures could be opened; see {summary.skipped_file}.")
    return summary


# Codes ---------------------------------------------------------------------------------------------------------------


def _tokenize_rows(
    pictures: PictureList, rows: range, model: SeedModel, image_processor, batch_size: int, bar: tqdm
) -> list[dict]:
    """One record per row, in order; `codes` is None and `error` says why where a picture cannot be opened."""
    records = []
    for batch in _open_batches(pictures, rows, image_processor, batch_size):
        opened = [pixels for _, pixels in batch if isinstance(pixels, torch.Tensor)]
        codes = iter(())
        if opened:
            with torch.no_grad():
                codes = iter(model.get_image_tokens(torch.stack(opened).to(model.device)).tolist())
        for picture, pixels in batch:
            record = {"id": picture.id, "captions": picture.captions, "codes": None, "error": None}
            if isinstance(pixels, torch.Tensor):
                record["codes"] = next(codes)
            else:
                record["error"] = pixels
            records.append(record)
        bar.update(len(batch))
    return records


def _open_batches(
    pictures: PictureList, rows: range, image_processor, batch_size: int
) -> Iterator[list[tuple[Picture, torch.Tensor | str]]]:
    """Batches of pictures with their pixel values, or the reason why there are none; the next is opened meanwhile."""

    def submit(chunk: range) -> list[tuple[Picture, Future]]:
        chosen = [pictures[row] for row in chunk]
        return [(picture, pool.submit(_open, picture, image_processor)) for picture in chosen]

    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pending = submit(chunks[0])
        for following in [*chunks[1:], range(0)]:
            upcoming = submit(following)
            yield [(picture, future.result()) for picture, future in pending]
            pending = upcoming


def _open(picture: Picture, image_processor) -> torch.Tensor | str:
    try:
        image = load_image(picture.source)
    except InvalidImageError as error:
        return _printable(str(error))
    return image_processor(image, return_tensors="pt")["pixel_values"][0]


def _printable(text: str) -> str:
    """Bytes of a file name that are not UTF-8, which Python keeps as surrogates and Arrow refuses, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# Files ---------------------------------------------------------------------------------------------------------------


def _holds_data(path: str | Path) -> bool:
    path, suffix = Path(path), Path(path).suffix.lower()
    if path.is_dir():  # of shards, unless there are pictures
        return next(images_below(path), None) is None and bool(_data_files(path))
    return suffix in DATA_SUFFIXES or suffix.startswith(TABLE_SUFFIXES)


def _data_files(path: Path) -> list[Path]:
    """A file of data, or those in a folder."""
    if not path.is_dir():
        return [path]
    files = sorted(file for kind in ("*.parquet", "*.tar") for file in path.rglob(kind))
    for file in files:
        if file.suffix == ".parquet" and "codes" in _columns_of(file):
            raise ValueError(f"{path} holds data and, in {file}, codes: put what is written into another folder.")
    return files


def _columns_of(file: Path) -> list[str]:
    try:
        return pq.read_schema(file).names
    except pa.ArrowInvalid:  # which reading will name
        return []


def _fingerprint(files: Sequence[Path], image_root: str | Path | None, split: str | None) -> str:
    """Hash of names, sizes and times of files, and what is read of them, by which a run is recognised."""
    digest = hashlib.sha256(str(image_root).encode())
    if split is not None:
        digest.update(f"\0{split}".encode())
    for file in files:
        try:
            state = file.stat()
        except OSError:  # a link that leads nowhere, which opening will name
            state = file.lstat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _is_complete(output: Path, run: dict) -> bool:
    if not output.exists():
        return False
    try:
        found = (pq.read_schema(output).metadata or {}).get(RUN_KEY)
    except pa.ArrowInvalid:
        found = None
    # Before they were remembered, there is nothing to compare the files with.
    if found is None or {_FILES: run[_FILES]} | json.loads(found) != run:
        raise ValueError(
            f"{output} exists and holds codes of other pictures or of another model: name another file, or delete it."
        )
    return True


def _start_or_continue(partial: Path, run: dict) -> None:
    manifest = partial / "run.json"
    if not manifest.exists():
        partial.mkdir(parents=True, exist_ok=True)
        write_atomically(manifest, json.dumps(run, indent=2))
        return
    found = {_FILES: run[_FILES]} | json.loads(manifest.read_text())
    differing = sorted(key for key in run if found.get(key) != run[key])
    if differing:
        raise ValueError(
            f"{partial} holds an unfinished run with another {', '.join(differing)}: repeat its command to finish it, "
            "name another output, or delete that folder."
        )


def _write_part(part: Path, schema: pa.Schema, records: list[dict]) -> None:
    temporary = part.with_name(part.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(records, schema=schema), temporary)
    os.replace(temporary, part)


def _assemble(output: Path, parts: list[Path], schema: pa.Schema, run: dict) -> TokenizationSummary:
    """The parts as one file, without the pictures that could not be opened, which are listed in another."""
    summary = TokenizationSummary(output=output)
    schema = schema.with_metadata(schema.metadata | {RUN_KEY: json.dumps(run)})
    temporary = output.with_name(output.name + ".tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        row = 0
        for part in parts:
            table = pq.read_table(part)
            for offset, error in enumerate(table["error"].to_pylist()):
                if error is not None:
                    summary.skipped.append((row + offset, table["id"][offset].as_py(), error))
            row += len(table)
            kept = table.filter(pa.compute.is_null(table["error"])).drop_columns("error")
            writer.write_table(kept.replace_schema_metadata(schema.metadata))
            summary.tokenized += len(kept)
    skipped_file = _skipped_file(output)
    skipped_file.unlink(missing_ok=True)
    if summary.skipped:
        lines = (json.dumps({"row": row, "id": id, "error": error}) + "\n" for row, id, error in summary.skipped)
        write_atomically(skipped_file, "".join(lines))
        summary.skipped_file = skipped_file
    os.replace(temporary, output) if summary.tokenized else temporary.unlink()
    return summary


def _summary_of(output: Path) -> TokenizationSummary:
    """Summary of a file that an earlier run finished."""
    tokenized = pq.read_metadata(output).num_rows
    summary = TokenizationSummary(output=output, tokenized=tokenized, continued_from=tokenized)
    if _skipped_file(output).exists():
        summary.skipped_file = _skipped_file(output)
        entries = map(json.loads, summary.skipped_file.read_text(encoding="utf-8").splitlines())
        summary.skipped = [(entry["row"], entry["id"], entry["error"]) for entry in entries]
        summary.continued_from += len(summary.skipped)
    return summary


def _skipped_file(output: Path) -> Path:
    return output.with_name(output.stem + ".skipped.jsonl")


__all__ = ["Picture", "PictureList", "TokenizationSummary", "load_image_tokenizer", "tokenize_pictures"]
