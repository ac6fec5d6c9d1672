"""Image-text pairs of any origin in one schema: `image`, `captions` (list of strings), optionally `id`.

| `format` | what it reads | captions from |
|---|---|---|
| `parquet` | Parquet file(s), or a folder of them | `captions`, `caption` or `text` |
| `imagefolder` | a folder of pictures | `metadata.jsonl`, `metadata.csv`, or a `.txt` beside each picture |
| `webdataset` | `.tar` shards | `txt`, or `caption` of the sample's JSON |
| `coco` | COCO's `captions_*.json`, pictures in `image_root` | `annotations` |
| `karpathy` | Karpathy's `dataset_*.json`, pictures in `image_root` | `sentences` |
| `table` | TSV or CSV of URLs and captions (CC3M, Unsplash), pictures in `image_root` | see `read_table` |
| `hub` | a data set's id on the Hub | as `parquet` |

Pictures stay undecoded until `iter_valid` opens them. So a broken picture is counted and does not stop the run.
"""

import contextlib
import glob
import hashlib
import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .image_text_sources import (
    ID_COLUMNS,
    METADATA_FILES,
    TABLE_SUFFIXES,
    SchemaError,
    beside,
    caption_columns,
    caption_list,
    files_below,
    iter_shards,
    pick_column,
    read_coco,
    read_image_folder,
    read_json,
    read_karpathy,
    read_table,
)
from .images import MAX_PIXELS, InvalidImageError, images_below, load_image

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

FORMATS = ("parquet", "imagefolder", "webdataset", "coco", "karpathy", "table", "hub")
# Sub-folders with these names are splits of an image folder.
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "dev", "test")
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")


@dataclass
class SkipReport:
    """The number of pictures that a run used, and which pictures it skipped and why."""

    max_listed: int = 100
    used: int = 0
    skipped: int = 0
    listed: list[tuple[str, str]] = field(default_factory=list)  # (name, fault) of the first `max_listed`
    faults: Counter = field(default_factory=Counter)

    def skip(self, name: str, fault: str, detail: str = "") -> None:
        """Count one picture as skipped. The wording of `fault` does not depend on the picture, so faults add up."""
        self.skipped += 1
        self.faults[fault] += 1
        if len(self.listed) < self.max_listed:
            self.listed.append((name, f"{fault} ({detail})" if detail else fault))

    def summary(self) -> str:
        """Return a line of counts, a line for each fault, and a line for each listed picture."""
        lines = [f"{self.used:,} of {self.used + self.skipped:,} images used, {self.skipped:,} skipped."]
        lines += [f"  {count:,} x {fault}" for fault, count in self.faults.most_common()]
        lines += [f"  {name}: {fault}" for name, fault in self.listed]
        if self.skipped > len(self.listed):
            lines.append(f"  ... and {self.skipped - len(self.listed):,} more")
        return "\n".join(lines)


def iter_valid(
    dataset: Iterable[Mapping],
    report: SkipReport | None = None,
    *,
    require_captions: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[dict]:
    """
    Yield the examples of a data set with their pictures opened as RGB. Skip broken pictures and count them in `report`.

    Args:
        dataset: examples with `image` as a path, bytes or `{"bytes", "path"}`, as `load_image_text` returns them.
        report: the report that is filled while one iterates.
        require_captions: skip (and count) examples whose `captions` are empty.
        max_pixels: the largest width times height, see `load_image`.
    """
    report = SkipReport() if report is None else report
    for number, example in enumerate(dataset):
        name = _name(example, number)
        if require_captions and "captions" in example and not example["captions"]:
            report.skip(name, "no caption")
            continue
        try:
            image = load_image(example["image"], max_pixels=max_pixels)
        except InvalidImageError as error:
            report.skip(name, error.fault, error.detail)
            continue
        report.used += 1
        yield {**example, "image": image}


def _name(example: Mapping, number: int) -> str:
    """Return a name for an example in reports: its path, its id, or its number."""
    image = example["image"]
    path = image.get("path") if isinstance(image, Mapping) else image if isinstance(image, (str, os.PathLike)) else None
    return str(path or example.get("id") or f"example {number}")


def load_image_text(
    source: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    format: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    columns: Mapping[str, str | list[str]] | None = None,
    image_root: str | os.PathLike | None = None,
    report: SkipReport | None = None,
) -> "Dataset | IterableDataset":
    """
    Load image-text pairs in one schema. Columns that the schema does not know stay as they are.

    Args:
        source: a file, a list of files, a glob pattern, a folder, or the id of a data set on the Hub. The Hub is asked
            only with `format="hub"`, or if nothing on disk has that name and it looks like `owner/name`.
        format: one of `FORMATS`. None means that the source tells.
        split: the split to read; needed if the source has several. In a folder of Parquet files or shards it is the
            files `SPLIT.parquet`, `SPLIT-*.parquet` or those in a folder `SPLIT`, in an image folder the folder
            `SPLIT`. Karpathy files accept several, as in "train+restval".
        streaming: return an `IterableDataset`. Parquet, WebDataset and the Hub are then read while one iterates.
        columns: the names of the schema's columns in the source, if they are unusual: `{"image": "jpg", "captions":
            "title"}`. Captions may be a list of columns. A column that already has the new name is replaced.
        image_root: the folder that file names are relative to in COCO, Karpathy and table sources, and in Parquet files
            that hold paths. The default is the folder of the source.
        report: a report in which the pictures of a table that were never downloaded are counted.

    Returns:
        A data set with `image` undecoded (`datasets.Image(decode=False)`), `captions`, and `id` if the source has one.

    Raises:
        FileNotFoundError: the source does not exist.
        SchemaError: a column is missing (the message lists those found), no picture is in `image_root`, or a file is
            not in its format.
        ValueError: the format, a key of `columns`, or the split is unknown.
    """
    columns = dict(columns or {})
    if unknown := set(columns) - {"image", "captions", "id", "url"}:
        raise ValueError(f"`columns` has the unknown keys {sorted(unknown)}; expected image, captions, id or url.")
    if format is not None and format not in FORMATS:
        raise ValueError(f"The format {format!r} is unknown; expected one of {', '.join(FORMATS)}.")
    if format == "hub" or (format is None and _is_hub_id(source)):
        return _in_schema(_load_hub(str(source), split, streaming), columns, str(source))
    paths = _existing(source)
    name = str(source) if isinstance(source, (str, os.PathLike)) else f"{paths[0]} and others"
    format = format or _detect(paths, columns.get("image"))
    if format == "parquet":
        files = _files_of_split(paths, ".parquet", split, name)
        root = files[0].parent if image_root is None else Path(image_root)
        return _in_schema(_load_parquet(files, streaming), columns, name, root)
    if format == "webdataset":
        return _load_shards(_files_of_split(paths, ".tar", split, name), columns, streaming)
    if len(paths) > 1:
        raise ValueError(f"{name}: the format {format!r} takes one source at a time, but {len(paths)} are given.")
    dataset = _from_columns(_read(format, paths[0], split, columns, image_root, report), name)
    return dataset.to_iterable_dataset() if streaming else dataset


# ---- finding out what a source is -----------------------------------------------------------------------------------


def _is_hub_id(source) -> bool:
    return (
        isinstance(source, str)
        and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
        and not os.path.exists(source)
        and not os.path.exists(os.path.dirname(source))
    )


def _existing(source) -> list[Path]:
    sources = [source] if isinstance(source, (str, os.PathLike)) else source
    paths = []
    for entry in map(os.fspath, sources):
        found = [entry] if os.path.exists(entry) else sorted(glob.glob(entry))
        if not found:
            raise FileNotFoundError(f"{entry}: no such file or folder, and not the id of a data set (owner/name).")
        paths += map(Path, found)
    return paths


def _is_table_without_pictures(file: Path, image_column: str | None) -> bool:
    try:
        names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError):  # reading the file will name the fault
        return False
    return image_column not in names and not {name.lower() for name in names}.intersection(IMAGE_COLUMNS)


def _detect(paths: list[Path], image_column: str | None = None) -> str:
    first = paths[0]
    if first.is_dir():
        if any(next(first.rglob(name), None) for name in METADATA_FILES):
            return "imagefolder"
        table = next(files_below(first, ".parquet"), None)
        shards = next(files_below(first, ".tar"), None) is not None
        # img2dataset writes a table beside each shard or folder of pictures. It describes the pictures without them.
        if table is not None and not (
            _is_table_without_pictures(table, image_column) and (shards or next(images_below(first), None) is not None)
        ):
            return "parquet"
        return "webdataset" if shards else "imagefolder"
    suffix = first.suffix.lower()
    if suffix in (".parquet", ".tar"):
        return {".parquet": "parquet", ".tar": "webdataset"}[suffix]
    if suffix.startswith(TABLE_SUFFIXES):
        return "table"
    if suffix == ".json":
        return "coco" if "annotations" in read_json(first) else "karpathy"
    raise ValueError(f"{first}: cannot tell its format from its name; pass `format`, one of {', '.join(FORMATS)}.")


def _files_of_split(paths: list[Path], suffix: str, split: str | None, name: str) -> list[Path]:
    """
    Return the files of one split by their names: `train.parquet`, `train-00000-of-00004.parquet`, `train/0000.parquet`.

    If no split is given, all files that were named themselves belong to it.
    """
    files = [file for path in paths for file in (sorted(files_below(path, suffix)) if path.is_dir() else [path])]
    if not files:
        raise FileNotFoundError(f"{name}: this folder has no {suffix} files.")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        stem = re.sub(r"(^|[-_.])\d+([-_]of[-_]\d+)?(-[0-9a-f]{16})?$", "", file.stem)
        by_split.setdefault(stem or file.parent.name, []).append(file)
    found = ", ".join(sorted(by_split))
    if split is None:
        if len(by_split) > 1 and any(path.is_dir() for path in paths):
            raise ValueError(f"{name} has several splits; pass split, one of {found}.")
        return files
    if split not in by_split:
        advice = "; leave split out to read it" if len(files) == 1 else ""
        raise ValueError(f"{name} has no split {split!r}; found {found}{advice}.")
    return by_split[split]


# ---- reading --------------------------------------------------------------------------------------------------------


def _load_hub(source: str, split: str | None, streaming: bool):
    from datasets import DatasetDict, IterableDatasetDict, load_dataset

    loaded = load_dataset(source, split=split, streaming=streaming)
    if isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        if len(loaded) > 1:
            raise ValueError(f"{source} has several splits; pass split, one of {', '.join(sorted(loaded))}.")
        loaded = next(iter(loaded.values()))
    return loaded


def _load_parquet(files: list[Path], streaming: bool):
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    names = [str(file) for file in files]
    try:
        # Some shards have no rows, and `datasets` cannot read those.
        names = [name for name in names if pq.read_metadata(name).num_rows] or names
        return load_dataset("parquet", data_files={"train": names}, split="train", streaming=streaming)
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise SchemaError(
            f"{', '.join(names[:3])}: not readable as parquet ({error.__cause__ or error}). "
            "Download the file again if it is truncated."
        ) from error


def _load_shards(files: list[Path], columns: Mapping[str, str | list[str]], streaming: bool):
    from datasets import Dataset, Features, Image, IterableDataset, List, Value

    for file in files:
        if not tarfile.is_tarfile(file):
            raise SchemaError(f"{file}: not a tar file. Download it again, or pass its format.")
    first = list(itertools.islice(iter_shards([str(file) for file in files], columns), 100))
    if not any(sample["image"]["bytes"] for sample in first):
        found = f"for example {first[0]['image']['path']}" if first else "no samples at all"
        raise SchemaError(
            f"{files[0]}: no images in its first {len(first)} samples, {found}. Name the extension of the images: "
            'columns={"image": "..."}.'
        )
    texts = Value("string")
    features = Features({"image": Image(decode=False), "captions": List(texts), "id": texts, "json": texts})
    arguments = {"shards": [str(file) for file in files], "columns": dict(columns)}
    if streaming:
        return IterableDataset.from_generator(iter_shards, features=features, gen_kwargs=arguments)
    stamp = str([(file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    return Dataset.from_generator(_shards, features=features, gen_kwargs={**arguments, "stamp": stamp})


def _shards(shards: list[str], columns: Mapping[str, str | list[str]], stamp: str) -> Iterator[dict]:
    """Yield `iter_shards`. The stamp, of sizes and times, makes `datasets` notice that cached shards have changed."""
    return iter_shards(shards, columns)


def _read(format, path: Path, split, columns, image_root, report: SkipReport | None) -> dict[str, list]:
    root = Path(image_root) if image_root is not None else path if path.is_dir() else path.parent
    if format == "karpathy":
        return read_karpathy(path, root, split)
    if format == "imagefolder" and split is not None and (path / split).is_dir():
        return read_image_folder(path / split, columns)
    if split is not None:
        raise ValueError(f"{path}: the format {format!r} has no splits; leave split out, or name the split's own file.")
    if format == "imagefolder":
        found = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name.lower() in SPLIT_FOLDERS)
        if len(found) > 1 and not any((path / name).is_file() for name in METADATA_FILES):
            raise ValueError(f"{path} has several splits; pass split, one of {', '.join(found)}.")
        return read_image_folder(path, columns)
    if format == "coco":
        return read_coco(path, root)
    return read_table(path, root, columns, report.skip if report else lambda name, fault: None)


def _from_columns(table: dict[str, list], source: str) -> "Dataset":
    from datasets import Dataset, Image, List, Value

    table = {**table, "image": [{"bytes": None, "path": path} for path in table["image"]]}
    try:
        dataset = Dataset.from_dict(table)
    except (pa.ArrowException, TypeError) as error:
        raise SchemaError(f"{source}: a column mixes types ({error}). Give each column one type.") from error
    dataset = dataset.cast_column("image", Image(decode=False))
    return dataset.cast_column("captions", List(Value("string")))


def _in_schema(dataset, columns: Mapping[str, str | list[str]], source: str, root: Path | None = None):
    """
    Rename and convert columns to the schema, without touching the pictures' bytes.

    Args:
        root: the folder that the paths of pictures are relative to. None means that the data hold no paths.
    """
    from datasets import Image, Value

    if dataset.column_names is None:
        raise SchemaError(f"The columns of {source} are not known while streaming; pass streaming=False.")
    image = pick_column("image", columns.get("image"), IMAGE_COLUMNS, dataset.column_names, source)
    # This comes first, because a streamed data set decodes pictures whenever a column is renamed or mapped.
    for name, feature in dataset.features.items():
        if name == image or isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    dataset = _rename(dataset, image, "image")
    if "id" in columns or any(name.lower() in ID_COLUMNS for name in dataset.column_names):
        identifier = pick_column("id", columns.get("id"), ID_COLUMNS, dataset.column_names, source)
        # This comes before any mapping, after which a streamed data set ignores casts.
        dataset = _rename(dataset, identifier, "id").cast_column("id", Value("string"))
    if root is not None:
        dataset = _beside(dataset, root, source)
    return _with_captions(dataset, columns, source)


def _are_clean(dataset) -> bool:
    """Return whether every caption has words. A streamed data set is not read for it, and gives False."""
    from datasets import IterableDataset

    if isinstance(dataset, IterableDataset):
        return False
    for batch in dataset.select_columns("captions").with_format("arrow").iter(10_000):
        texts = pc.list_flatten(batch["captions"])
        if texts.null_count or pc.any(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)).as_py():
            return False
    return True


def _beside(dataset, root: Path, source: str):
    """Make the paths of pictures in a table relative to the working directory, see `image_path`."""
    from datasets import IterableDataset

    def found(example: dict) -> dict:
        image = example["image"]
        return {"image": beside(image, root, Path(source)) if image else None}

    if isinstance(dataset, IterableDataset) or next(_paths(dataset), None) is not None:
        return dataset.map(found, features=dataset.features)
    return dataset


def _paths(dataset) -> Iterator[str]:
    """Yield the paths of the pictures that are files, in order. Pictures within the data set are not read for it."""
    for batch in dataset.select_columns("image").with_format("arrow").iter(10_000):
        pictures = batch["image"]  # stays in chunks, because joining them would copy the pictures
        path, inside = pc.struct_field(pictures, "path"), pc.struct_field(pictures, "bytes")
        yield from pc.drop_null(path.filter(pc.is_null(inside))).to_pylist()


def picture_file_states(dataset) -> str:
    """
    Return a hash of the names, sizes and times of the pictures that are files of their own; "" if there are none.

    It changes when such a picture is added, replaced or damaged.
    """
    digest, found = hashlib.sha256(), False
    for path in _paths(dataset):
        found = True
        digest.update(path.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(OSError):
            state = os.stat(path)
            digest.update(f" {state.st_size} {state.st_mtime_ns} ".encode())
    return digest.hexdigest() if found else ""


def _rename(dataset, old: str, new: str):
    if old == new:
        return dataset
    if new in dataset.column_names:
        dataset = dataset.remove_columns(new)
    return dataset.rename_column(old, new)


def _with_captions(dataset, columns: Mapping[str, str | list[str]], source: str):
    """Replace the columns that hold captions by one column `captions` of lists of strings."""
    from datasets import Features, IterableDataset, List, Value, concatenate_datasets

    texts = List(Value("string"))
    names = caption_columns(columns, dataset.column_names, source)
    if names == ["captions"] and dataset.features["captions"] == texts and _are_clean(dataset):
        return dataset

    def collect(example: dict) -> dict:
        return {"captions": list(dict.fromkeys(text for name in names for text in caption_list(example[name])))}

    gone = [name for name in dict.fromkeys([*names, "captions"]) if name in dataset.column_names]
    rest = {name: feature for name, feature in dataset.features.items() if name not in gone}
    if isinstance(dataset, IterableDataset):
        return dataset.map(collect, remove_columns=gone, features=Features({**rest, "captions": texts}))
    # The pictures are left out, so that mapping does not write them anew.
    captions = dataset.select_columns(names).map(collect, remove_columns=names, features=Features(captions=texts))
    return concatenate_datasets([dataset.remove_columns(gone), captions], axis=1)
