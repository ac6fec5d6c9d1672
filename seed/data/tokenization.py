"""Bulk tokenisation: many pictures to one Parquet file of codes. Broken ones are listed; a killed run continues."""

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

from ..files_seed import replacing_file, write_atomically
from ..image_processing_seed import SeedImageProcessorPil
from ..modeling_seed import SeedModel
from ..repository_seed import SeedRepository
from .codes import CodesMetadata, codes_schema
from .image_text import SkipReport, load_image_text, picture_file_states
from .image_text_sources import TABLE_SUFFIXES, captions_of_folders, files_below, sidecar_captions, sidecar_of
from .images import ImageSource, InvalidImageError, images_below, list_images, load_image

# Files with these suffixes hold image-text data. All other paths are pictures or folders of pictures.
DATA_SUFFIXES = (".parquet", ".tar", ".json")
# The number of pictures in a part file. It limits what a kill costs, and the number of files during a long run.
ROWS_PER_PART = 256
# The key in the schema's metadata that describes the run which made the file.
RUN_KEY = b"seed_run"
_FILES = "picture_files"


@dataclass
class Picture:
    """
    A picture to tokenise.

    Args:
        id: its path, its id in the data set, or its row number there, without bytes that are not UTF-8.
        source: what [`load_image`] opens.
        captions: its captions; None if the pictures have none.
    """

    id: str
    source: ImageSource
    captions: list[str] | None = None


class PictureList(Sequence):
    """
    Pictures to tokenise, in order. Each is opened when its turn comes.

    Args:
        paths: images and folders of images, whose captions come from `metadata.jsonl`, `metadata.csv` or a `.txt`
            beside a picture; or image-text data (`.parquet`, `.tar`, `.json`, `.tsv`, `.csv`, or a folder of the first
            two).
        image_root: the folder that file names in image-text data are relative to. The default is the folder of the
            data.
        split: the split of image-text data to read, see [`load_image_text`].

    Attributes:
        has_captions: whether the pictures have captions.
        fingerprint: a hash of the names, sizes and times of the files that were named.
        file_states: a hash of those of the pictures that such files name in turn; "" if there are none.
        not_downloaded: the number of rows of a table whose pictures were never downloaded.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder has no images, pictures and image-text data are mixed, image-text data lack a column, or
            the split is missing or unknown.
    """

    def __init__(self, paths: Sequence[str | Path], image_root: str | Path | None = None, split: str | None = None):
        data = [path for path in paths if _holds_data(path)]
        if data and len(data) < len(paths):
            other = next(path for path in paths if path not in data)
            raise ValueError(f"{data[0]} holds image-text data, but {other} does not; tokenise them one by one.")
        self._are_rows, self.has_captions = bool(data), bool(data)
        report = SkipReport()
        if data:
            self._rows = load_image_text(paths, split=split, image_root=image_root, report=report)
            files = [file for path in paths for file in _data_files(Path(path))]
        elif split is not None:
            raise ValueError(
                f"split is {split!r}, but {paths[0]} is a picture or a folder of pictures and has no splits. Leave "
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
    What a run of [`tokenize_pictures`] did.

    Args:
        output: the file of codes.
        tokenized: the number of pictures in it.
        skipped: `(row, id, reason)` of each picture that could not be opened.
        skipped_file: the file that lists them; None if there are none.
        continued_from: the number of pictures that earlier runs had done.
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
    Load an image tokenizer without its text branch, and its image processor.

    Args:
        name: a SEED repository, or the folder or Hub id of an image tokenizer alone.
        dtype: the dtype to compute in. Codes that are stored or compared are made in float32 (our choice), because
            near-ties of two codes fall otherwise in lower precision.
        device: the device to compute on.
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
    Write the codes of pictures to a Parquet file, in the pictures' order.

    Pictures that cannot be opened are left out and listed in a file beside `output`, such as `codes.skipped.jsonl`
    beside `codes.parquet`. Codes are kept in a folder (`codes.parquet.partial`) until all are there, so the same call
    continues a run that was killed. A picture's codes do not depend on its batch, except for near-ties of two codes.

    Args:
        pictures: the pictures. They are opened batch by batch, and the next batch while the model works on one.
        output: the Parquet file, with the columns `id`, `codes` and, if the pictures have captions, `captions`. Its
            schema's metadata say what made the codes, see [`CodesMetadata`].
        model, image_processor: see [`load_image_tokenizer`].
        batch_size: the number of pictures that are tokenised at a time.
        progress: whether to show a progress bar.

    Raises:
        ValueError: `output`, or an unfinished run for it, is of other pictures or of another model; or no picture could
            be opened.
    """
    output = Path(output)
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
                records = _tokenize_rows(pictures, rows, model, image_processor, batch_size, bar)
                with replacing_file(part) as temporary:
                    pq.write_table(pa.Table.from_pylist(records, schema=schema), temporary)
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
    """Return a record of each row, in order. If a picture cannot be opened, `codes` is None and `error` says why."""
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
    """
    Yield batches of pictures with their pixel values, or with the reason why a picture has none.

    The next batch is opened meanwhile.
    """

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
    """Return the pixel values of a picture, or why it cannot be opened."""
    try:
        image = load_image(picture.source)
    except InvalidImageError as error:
        return _printable(str(error))
    return image_processor(image, return_tensors="pt")["pixel_values"][0]


def _printable(text: str) -> str:
    """Spell out the bytes of a file name that are not UTF-8. Python keeps them as surrogates, which Arrow refuses."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# Files ---------------------------------------------------------------------------------------------------------------


def _holds_data(path: str | Path) -> bool:
    """Return whether a path holds image-text data, not pictures."""
    path, suffix = Path(path), Path(path).suffix.lower()
    if path.is_dir():  # a folder with pictures counts as pictures, even if it also holds shards
        return next(images_below(path), None) is None and bool(_data_files(path))
    return suffix in DATA_SUFFIXES or suffix.startswith(TABLE_SUFFIXES)


def _data_files(path: Path) -> list[Path]:
    """Return a file of image-text data, or all of those in a folder."""
    if not path.is_dir():
        return [path]
    files = sorted(file for suffix in (".parquet", ".tar") for file in files_below(path, suffix))
    for file in files:
        if file.suffix == ".parquet" and "codes" in _columns_of(file):
            raise ValueError(f"{path} holds data and, in {file}, codes; move the codes to another folder.")
    return files


def _columns_of(file: Path) -> list[str]:
    try:
        return pq.read_schema(file).names
    except pa.ArrowInvalid:  # reading the file will name the fault
        return []


def _fingerprint(files: Sequence[Path], image_root: str | Path | None, split: str | None) -> str:
    """Return a hash of names, sizes and times of files, and of what is read from them. It tells runs apart."""
    digest = hashlib.sha256(str(image_root).encode())
    if split is not None:
        digest.update(f"\0{split}".encode())
    for file in files:
        try:
            state = file.stat()
        except OSError:  # a link that leads nowhere; opening it will name the fault
            state = file.lstat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _is_complete(output: Path, run: dict) -> bool:
    """
    Return whether an earlier run has written all codes to `output`.

    Raises:
        ValueError: the file is the result of another run, or of none.
    """
    if not output.exists():
        return False
    try:
        found = (pq.read_schema(output).metadata or {}).get(RUN_KEY)
    except pa.ArrowInvalid:
        found = None
    # Earlier versions did not store the states of the pictures' own files, so theirs are not compared.
    if found is None or {_FILES: run[_FILES]} | json.loads(found) != run:
        raise ValueError(
            f"{output} exists and holds codes of other pictures or of another model; name another file, or delete it."
        )
    return True


def _start_or_continue(partial: Path, run: dict) -> None:
    """
    Make the folder of an unfinished run, or check that it belongs to the same run.

    Raises:
        ValueError: it belongs to another run.
    """
    manifest = partial / "run.json"
    if not manifest.exists():
        partial.mkdir(parents=True, exist_ok=True)
        write_atomically(manifest, json.dumps(run, indent=2))
        return
    found = {_FILES: run[_FILES]} | json.loads(manifest.read_text())
    differing = sorted(key for key in run if found.get(key) != run[key])
    if differing:
        raise ValueError(
            f"{partial} holds an unfinished run with another {', '.join(differing)}. Repeat its command to finish it, "
            "name another output, or delete that folder."
        )


def _assemble(output: Path, parts: list[Path], schema: pa.Schema, run: dict) -> TokenizationSummary:
    """Write the parts as one file, and a list of the pictures that could not be opened beside it."""
    outcomes = [row for part in parts for row in pq.read_table(part, columns=["id", "error"]).to_pylist()]
    skipped = [(number, row["id"], row["error"]) for number, row in enumerate(outcomes) if row["error"] is not None]
    summary = TokenizationSummary(output=output, tokenized=len(outcomes) - len(skipped), skipped=skipped)
    skipped_file = _skipped_file(output)
    skipped_file.unlink(missing_ok=True)
    if skipped:
        lines = (json.dumps({"row": row, "id": id, "error": error}) + "\n" for row, id, error in skipped)
        write_atomically(skipped_file, "".join(lines))
        summary.skipped_file = skipped_file
    if summary.tokenized:
        schema = schema.with_metadata(schema.metadata | {RUN_KEY: json.dumps(run)})
        with replacing_file(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for part in parts:
                table = pq.read_table(part)
                kept = table.filter(pa.compute.is_null(table["error"])).drop_columns("error")
                writer.write_table(kept.replace_schema_metadata(schema.metadata))
    return summary


def _summary_of(output: Path) -> TokenizationSummary:
    """Return the summary of a file that an earlier run finished."""
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
