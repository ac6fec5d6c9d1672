"""Captioned pictures as people publish them: folders, COCO and Karpathy JSON, caption tables, WebDataset shards.

Each reader returns a dict of equally long lists with `image`, `captions` (lists of strings), `id` if the source has
one, and the source's other columns; the reader of shards yields samples. Nothing is decoded here.
"""

import csv
import hashlib
import json
import logging
import os
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

from .images import IMAGE_SUFFIXES, list_images

logger = logging.getLogger(__name__)

Columns = dict[str, list]
# Programs on Windows begin text files with a byte order mark. This encoding skips it.
ENCODING = "utf-8-sig"
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
# The suffixes of tables begin so. Unsplash names its tables .tsv000, .tsv001, ..., and once named them .csv000.
TABLE_SUFFIXES = (".tsv", ".csv")
URL_COLUMNS = ("url", "image_url", "photo_image_url")
CAPTION_COLUMNS = ("captions", "caption", "text", "txt", "photo_description", "ai_description")
ID_COLUMNS = ("id", "photo_id", "image_id", "__key__")


class SchemaError(ValueError):
    """An error about a source that lacks a column or field. The message says what was found and what to pass."""


def caption_list(value) -> list[str]:
    """Return the captions of a picture as a list. A source has a string, a list, or none; a number counts as none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def pick_column(role: str, wanted: str | None, usual: Iterable[str], found: Iterable[str], source: str) -> str:
    """
    Return the name of the column for `role`: the wanted one, or else the first usual name among those found.

    Raises:
        SchemaError: there is no such column.
    """
    found = list(found)
    if wanted is not None and wanted in found:
        return wanted
    if wanted is None:
        lowered = {name.lower(): name for name in reversed(found)}
        for name in usual:
            if name in lowered:
                return lowered[name]
    looked_for = f"a column {wanted!r}" if wanted is not None else f"any of the columns {', '.join(usual)}"
    raise SchemaError(
        f"{source} has no {role}: looked for {looked_for}, found {', '.join(map(str, found)) or 'none'}. "
        f'Say which column holds the {role}: columns={{"{role}": "..."}}.'
    )


def image_path(root: Path, folder: Path, name: str, source: Path) -> str:
    """
    Return the path of the picture that `source` calls `name`, which is relative to `folder`.

    Data of unknown origin must not choose which files are read. So `..` and absolute paths are accepted only if they
    stay within `root`. Links in there are followed, because the folder's owner has made them.

    Raises:
        SchemaError: the path leads out of `root`.
    """
    path = folder / name
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise SchemaError(
            f"{source}: the image {name!r} is outside of {root}. Move the images into that folder, or pass a folder "
            "that holds all of them (as image_root, or as the source)."
        )
    return str(path)


def beside(image: dict, root: Path, source: Path) -> dict:
    """
    Return a picture of `source`, `{"bytes": ..., "path": ...}`, with a path from the working directory.

    Args:
        image: the picture as `source` has it. If it is a file, its path is relative to `root`.
        root, source: see [`image_path`].
    """
    if image.get("bytes") is None and image.get("path"):
        return {"bytes": None, "path": image_path(root, root, image["path"], source)}
    return image


def files_below(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the files with a suffix in a folder and its sub-folders, without hidden ones, which a killed run leaves."""
    return (file for file in folder.rglob(f"*{suffix}") if not file.name.startswith("."))


# ---- image folders --------------------------------------------------------------------------------------------------


def sidecar_of(image: Path) -> Path:
    """Return the path of the `.txt` beside a picture that may hold its captions."""
    return image.with_suffix(".txt")


def sidecar_captions(image: Path) -> list[str]:
    """Return the lines of the `.txt` beside a picture; none if there is no such file."""
    path = sidecar_of(image)
    return caption_list(path.read_text(encoding=ENCODING, errors="replace").splitlines()) if path.is_file() else []


def read_image_folder(folder: Path, columns: Mapping[str, str | list[str]]) -> Columns:
    """
    Read a folder with `metadata.jsonl` or `metadata.csv` (column `file_name`), or with a `.txt` beside each picture.

    Metadata files may also lie in sub-folders; `file_name` is relative to their own folder. Each line of a `.txt` is
    one caption.

    Raises:
        SchemaError: the folder has neither, a line of metadata is no JSON, a table is damaged, a column is missing, or
            a picture is outside of the folder.
    """
    metadata = _metadata_files(folder)
    if metadata:
        rows = [row for path in metadata for row in _metadata_rows(folder, path, columns)]
        return _columns(rows)
    rows = []
    for image in list_images(folder):
        if sidecar_of(image).is_file():
            identifier = str(image.relative_to(folder).with_suffix(""))
            rows.append({"image": str(image), "captions": sidecar_captions(image), "id": identifier})
    if not rows:
        raise SchemaError(
            f"{folder} has no captions. Add a metadata.jsonl or metadata.csv with the columns file_name and caption, "
            "or a .txt file of the same name beside each image."
        )
    return _columns(rows)


def captions_of_folders(paths: Iterable[str | os.PathLike]) -> tuple[dict[str, list[str]], list[Path]]:
    """
    Return the captions in the metadata files below some folders, by the absolute paths of pictures, and those files.

    A `metadata.jsonl` or `metadata.csv` that holds something else than captions is ignored, and a warning is logged.
    """
    captions, files = {}, []
    for folder in (path for path in map(Path, paths) if path.is_dir()):
        for file in _metadata_files(folder):
            files.append(file)
            try:
                rows = list(_metadata_rows(folder, file, {}))
            except SchemaError as error:
                logger.warning("%s Captions are not taken from there.", error)
                continue
            captions |= {os.path.abspath(row["image"]): row["captions"] for row in rows}
    return captions, files


def _metadata_files(folder: Path) -> list[Path]:
    return sorted(path for name in METADATA_FILES for path in folder.rglob(name))


def _metadata_rows(folder: Path, path: Path, columns: Mapping[str, str | list[str]]) -> Iterator[dict]:
    with path.open(encoding=ENCODING, newline="") as lines, _table_errors(path):
        if path.suffix == ".csv":
            rows = list(_csv_rows(lines)[1])
        else:
            rows = [_json_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        return
    file_name = pick_column("image", columns.get("image"), ("file_name", "filename", "image"), rows[0], str(path))
    captions = caption_columns(columns, rows[0], str(path))
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get(file_name), str) or not row[file_name]:
            raise SchemaError(f"{path}, row {number} has no {file_name}; found {row}. Add the image's file name.")
        extra = {key: value for key, value in row.items() if key not in (file_name, *captions)}
        texts = [text for name in captions for text in caption_list(row.get(name))]
        yield {**extra, "image": image_path(folder, path.parent, row[file_name], path), "captions": texts}


@contextmanager
def _table_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise SchemaError(
            f"{path}: not a table that can be read ({error}). Close the quotation mark that one of its cells opens, or "
            "download the file again."
        ) from error


def _csv_rows(lines: Iterator[str], delimiter: str = ",") -> tuple[list[str], Iterator[dict[str, str | None]]]:
    """
    Return the header of a table, and an iterator over its rows. Cells that a row lacks are None.

    Raises:
        csv.Error: a quotation mark is never closed, so the last row has swallowed all that follows the mark.
    """
    row_lines: list[str] = []

    def noted() -> Iterator[str]:
        for line in lines:
            row_lines.append(line)
            yield line

    reader = csv.reader(noted(), delimiter=delimiter)

    def rows() -> Iterator[list[str]]:
        last: list[str] = []
        for row in reader:
            last = row_lines.copy()
            row_lines.clear()
            if row:
                yield row
        try:
            list(csv.reader(last, delimiter=delimiter, strict=True))
        except csv.Error as error:
            if "end of data" in str(error):  # other errors are about marks within a cell, which are harmless
                raise csv.Error(f"it ends within the row that begins {last[0][:80]!r}") from error

    whole = rows()
    header = next(whole, [])
    return header, (dict(zip_longest(header, row[: len(header)])) for row in whole)


def _json_line(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SchemaError(f"{path}, line {number}: not JSON ({error}). Write one JSON object on each line.") from error
    if not isinstance(row, dict):
        raise SchemaError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}.")
    return row


def caption_columns(columns: Mapping[str, str | list[str]], found: Iterable[str], source: str) -> list[str]:
    """
    Return the caption columns that `columns` names, or else `captions`, or else all that have a usual name.

    Raises:
        SchemaError: the source has no such column.
    """
    found = list(found)
    wanted = columns.get("captions")
    if wanted is not None:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        return [pick_column("captions", name, (), found, source) for name in names]
    if "captions" in found:
        return ["captions"]
    usual = [name for name in found if name.lower() in CAPTION_COLUMNS]
    return usual or [pick_column("captions", None, CAPTION_COLUMNS, found, source)]


# ---- COCO and Karpathy ----------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """
    Return the content of a JSON file that holds an object.

    Raises:
        SchemaError: the file is not JSON, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding=ENCODING))
    except ValueError as error:
        raise SchemaError(f"{path}: not a complete JSON file ({error}). Download it again.") from error
    if not isinstance(data, dict):
        raise SchemaError(f"{path}: expected a JSON object with the key 'images', found a {type(data).__name__}.")
    return data


def read_coco(path: Path, image_root: Path) -> Columns:
    """
    Read COCO's `captions_*.json`, which has pictures in `images` and one caption in each entry of `annotations`.

    Raises:
        SchemaError: a key is missing, no picture is in `image_root`, or a picture is outside of it.
    """
    data = read_json(path)
    captions: dict[int, list[str]] = defaultdict(list)
    try:
        for annotation in data["annotations"]:
            captions[annotation["image_id"]] += caption_list(annotation["caption"])
        rows = [
            {
                "image": image_path(image_root, image_root, image["file_name"], path),
                "captions": captions.get(image["id"], []),
                "id": str(image["id"]),
            }
            for image in data["images"]
        ]
    except (KeyError, TypeError) as error:
        raise SchemaError(
            f"{path}: not COCO captions: {error!r} is missing; found the keys {', '.join(data)}. Expected images "
            "[{id, file_name}] and annotations [{image_id, caption}]."
        ) from error
    return _columns(_some_exist(rows, path, image_root))


def read_karpathy(path: Path, image_root: Path, split: str | None = None) -> Columns:
    """
    Read Karpathy's `dataset_coco.json` or `dataset_flickr30k.json`.

    Args:
        split: a split of the file, or several as in `"train+restval"`. COCO's `restval` holds those of its validation
            pictures that most publications also train on; `"train"` alone leaves them out. The split is needed if the
            file has pictures both to train on and to test with.

    Raises:
        ValueError: the file has several splits, and `split` is None.
        SchemaError: a key is missing, the file has no such split, no picture is in `image_root`, or a picture is
            outside of it.
    """
    data = read_json(path)
    wanted = None if split is None else set(split.split("+"))
    try:
        found = {image["split"] for image in data["images"]}
        rows = [
            {
                "image": image_path(image_root, image_root / image.get("filepath", ""), image["filename"], path),
                "captions": caption_list([sentence["raw"] for sentence in image["sentences"]]),
                "id": str(image.get("cocoid", image.get("imgid", image["filename"]))),
                "split": image["split"],
            }
            for image in data["images"]
            if wanted is None or image["split"] in wanted
        ]
    except (KeyError, TypeError) as error:
        raise SchemaError(
            f"{path}: not a Karpathy split file: {error!r} is missing. Expected images [{{filename, split, sentences "
            "[{raw}]}]."
        ) from error
    if wanted is None and len(found) > 1 and not found <= {"train", "restval"}:
        raise ValueError(
            f"{path} has several splits; pass split, one of {', '.join(sorted(found))}, or several (train+restval)."
        )
    if wanted is not None and not wanted <= found:
        raise SchemaError(f"{path} has no split {', '.join(sorted(wanted - found))}; found {', '.join(sorted(found))}.")
    return _columns(_some_exist(rows, path, image_root))


def _some_exist(rows: list[dict], path: Path, image_root: Path) -> list[dict]:
    """
    Return the rows as they are, if one of the first hundred pictures exists.

    If none exists, `image_root` is wrong. Single missing files are skipped later.
    """
    if rows and not any(os.path.exists(row["image"]) for row in rows[:100]):
        raise SchemaError(
            f"{path}: none of its first images is there, for example {rows[0]['image']}. "
            f"Pass as image_root the folder that its file names are relative to (it is {image_root} now)."
        )
    return rows


# ---- tables of URLs and captions ------------------------------------------------------------------------------------


def read_table(
    path: Path,
    image_root: Path,
    columns: Mapping[str, str | list[str]],
    on_missing: Callable[[str, str], None] = lambda name, fault: None,
) -> Columns:
    """
    Read a table of URLs and captions whose pictures were downloaded to `image_root`.

    Two kinds are published. Without a header, a table has the two columns caption and URL in any order (CC3M's
    `Train_GCC-training.tsv`). With a header, it has named columns (Unsplash's `photos.tsv000`: photo_id,
    photo_image_url, photo_description, ai_description, ...).

    A picture may lie anywhere under `image_root` and have any image suffix. Its name is the first of these that exists:
    its id, or in a table without ids the number of its row from 0, with 9 digits (img2dataset's `files` output with
    10,000 samples per shard) or without leading zeros; or the MD5 or SHA-256 of its URL in hexadecimal.

    Args:
        on_missing: called with a name and a fault for each row whose picture was never downloaded, which is left out.

    Raises:
        SchemaError: a column is missing, the table is damaged, or no picture is found.
    """
    known = {file.stem: str(file) for file in _image_files(image_root)}
    rows, tried = [], []
    for number, row in enumerate(_table_rows(path, columns)):
        if row is None:
            on_missing(f"{path}, row {number}", "not two columns")
            continue
        names = _picture_names(number, row["id"], row["url"])
        image = next((known[name] for name in names if name in known), None)
        if image is None:
            tried = tried or names
            on_missing(row["id"] or row["url"], "not downloaded")
        else:
            rows.append({**row, "image": image, "id": row["id"] or str(number)})
    if not rows:
        raise SchemaError(
            f"{path}: none of its images is under {image_root}; for its first row looked for "
            f"{', '.join(f'{name}.jpg' for name in tried) or 'nothing, because the table is empty'}. Download the "
            "images first (for example with img2dataset) and pass their folder as image_root."
        )
    return _columns(rows)


def _image_files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def _picture_names(number: int, identifier: str, url: str) -> list[str]:
    hashes = [hashlib.new(kind, url.encode(), usedforsecurity=False).hexdigest() for kind in ("md5", "sha256")]
    return [*([identifier] if identifier else [f"{number:09d}", str(number)]), *hashes]


def _table_rows(path: Path, columns: Mapping[str, str | list[str]]) -> Iterator[dict | None]:
    with path.open(encoding=ENCODING, errors="replace", newline="") as lines, _table_errors(path):
        # Unsplash's .csv000 have tabs between their columns.
        delimiter = "\t" if path.suffix.lower().startswith(".tsv") or "\t" in lines.readline() else ","
        lines.seek(0)
        # Tables without a header quote nothing, and their captions may hold a single quotation mark.
        first = next(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE), [])
        lines.seek(0)
        url_at = next((at for at, cell in enumerate(first) if cell.startswith(("http://", "https://"))), None)
        if len(first) == 2 and url_at is not None:
            for row in csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE):
                # A row that is not understood still counts, because pictures are named by the number of their row.
                whole = len(row) == 2
                yield {"url": row[url_at], "captions": caption_list(row[1 - url_at]), "id": ""} if whole else None
            return
        found, table = _csv_rows(lines, delimiter)
        url = pick_column("url", columns.get("url"), URL_COLUMNS, found, str(path))
        captions = caption_columns(columns, found, str(path))
        has_id = "id" in columns or any(name.lower() in ID_COLUMNS for name in found)
        identifier = pick_column("id", columns.get("id"), ID_COLUMNS, found, str(path)) if has_id else None
        for row in table:
            extra = {name: row[name] for name in found if name not in (url, identifier, *captions)}
            texts = list(dict.fromkeys(text for name in captions for text in caption_list(row.get(name))))
            yield {**extra, "url": row[url] or "", "captions": texts, "id": (identifier and row[identifier]) or ""}


# ---- WebDataset shards ----------------------------------------------------------------------------------------------


def iter_shards(shards: list[str], columns: Mapping[str, str | list[str]]) -> Iterator[dict]:
    """
    Yield the samples of WebDataset shards. A sample is neighbouring files with one path up to the name's first dot.

    Unlike `datasets`' own reader, this one takes shards whose samples differ in their files: one has a `.jpg`, another
    a `.png` and no caption. A sample's captions are its `.txt` (or `.caption`, `.text`), or else the fields `caption`,
    `captions` or `text` of its `.json`; `columns` names other extensions or fields. The JSON is kept as a string.

    A truncated shard yields the samples that it holds, and a warning is logged.
    """
    for shard in shards:
        samples = 0
        try:
            for key, files in _samples(shard):
                samples += 1
                yield _sample(key, files, columns, shard)
        except (tarfile.ReadError, EOFError, zlib.error) as error:
            logger.warning(
                "%s ends too early (%s); used its first %d samples. Download it again.", shard, error, samples
            )


def _samples(shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    current, files = None, {}
    with tarfile.open(shard, "r|*") as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            if name.startswith("."):  # macOS writes "._a.png" before a.png
                continue
            stem, _, extension = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if key != current and files:
                yield current, files
                files = {}
            current = key
            files[extension.lower()] = archive.extractfile(member).read()
    if files:
        yield current, files


def _sample(key: str, files: Mapping[str, bytes], columns: Mapping[str, str | list[str]], shard: str) -> dict:
    wanted = columns.get("image")
    extension = next((name for name in files if (name == wanted if wanted else f".{name}" in IMAGE_SUFFIXES)), None)
    try:
        fields = json.loads(files.get("json") or b"{}")
    except ValueError:
        fields = {}  # the picture and a .txt may be good; a sample without a caption is counted as skipped
    fields = fields if isinstance(fields, dict) else {}
    names = columns.get("captions", CAPTION_COLUMNS)
    names = [names] if isinstance(names, str) else list(names)
    texts = [files[name].decode(ENCODING, "replace") for name in names if name in files]
    texts = texts or [text for name in names for text in caption_list(fields.get(name))]
    return {
        "image": {"bytes": files.get(extension, b""), "path": f"{shard}/{key}.{extension or '(no image)'}"},
        "captions": list(dict.fromkeys(caption_list(texts))),
        "id": str(fields.get(columns["id"], key)) if "id" in columns else key,
        "json": files["json"].decode(ENCODING, "replace") if "json" in files else None,
    }


def _columns(rows: list[dict]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
