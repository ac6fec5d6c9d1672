"""The file of codes, with a Parquet row for each picture. Its schema's metadata say what made the codes."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..files_seed import replacing_file
from ..modeling_seed import SeedModel
from .provenance import preprocessing_hash

METADATA_KEY = b"seed"


@dataclass(frozen=True)
class CodesMetadata:
    """
    What made the codes of a file.

    Args:
        image_tokenizer: the hash of the weights that made the codes, see [`SeedModel.codes_hash`].
        preprocessing: the hash of the image processor's settings.
        dtype: the dtype in which the codes were computed, such as "float32".
        codebook_size: codes are 0 .. codebook_size - 1.
        num_codes: the number of codes of a picture.
    """

    image_tokenizer: str
    preprocessing: str
    dtype: str
    codebook_size: int
    num_codes: int

    @classmethod
    def of(cls, model: SeedModel, image_processor) -> "CodesMetadata":
        """Return the metadata of codes that `model` makes now."""
        return cls(
            image_tokenizer=model.codes_hash(),
            preprocessing=preprocessing_hash(image_processor),
            dtype=str(model.dtype).removeprefix("torch."),
            codebook_size=model.config.codebook_size,
            num_codes=model.config.num_codes,
        )


@dataclass
class CodesFile:
    """
    The content of a file of codes.

    Args:
        ids: the path of each picture, its id in the data set, or its row number there.
        codes: the codes, `(pictures, num_codes)` int64.
        metadata: what made the codes; None if the file does not say so.
    """

    ids: list[str]
    codes: torch.LongTensor
    metadata: CodesMetadata | None


def codes_schema(metadata: CodesMetadata, with_captions: bool) -> pa.Schema:
    """Return the schema of a file of codes: `id`, `codes` (`num_codes` x int32) and, if asked for, `captions`."""
    fields = [pa.field("id", pa.string()), pa.field("codes", pa.list_(pa.int32(), metadata.num_codes))]
    if with_captions:
        fields.append(pa.field("captions", pa.list_(pa.string())))
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(dataclasses.asdict(metadata))})


def read_schema(path: str | Path) -> pa.Schema:
    """
    Return the schema of a Parquet file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not Parquet, or is truncated.
    """
    try:
        return pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file, or a truncated one ({error}).") from error


def read_metadata(path: str | Path) -> dict | None:
    """Return the metadata of a file of codes as a dict; None if it has none. For its errors see [`read_schema`]."""
    return _metadata_of(read_schema(path))


def _metadata_of(schema: pa.Schema) -> dict | None:
    stored = (schema.metadata or {}).get(METADATA_KEY)
    return json.loads(stored) if stored else None


def read_codes(path: str | Path, codebook_size: int, num_codes: int) -> CodesFile:
    """
    Read and check a file of codes.

    Args:
        path: a Parquet file with a column `codes` of integer lists, and perhaps a column `id`.
        codebook_size: every code has to be in 0 .. codebook_size - 1.
        num_codes: the number of codes that every row has to have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not Parquet; it has no column `codes`, or one that does not hold integers; a row has
            another number of codes, or a code out of range. The message names the file, the row and the value.
    """
    schema = read_schema(path)
    stored, found = _metadata_of(schema), schema.names
    if "codes" not in found:
        raise ValueError(f"{path} has no column 'codes'; it has {', '.join(found) or 'none'}.")
    table = pq.read_table(path, columns=[name for name in ("id", "codes") if name in found])
    codes = _check_codes(table["codes"], str(path), codebook_size, num_codes)
    ids = _read_ids(table["id"]) if "id" in found else [str(row) for row in range(len(codes))]
    known = {field.name for field in dataclasses.fields(CodesMetadata)}
    metadata = CodesMetadata(**stored) if stored and stored.keys() == known else None
    return CodesFile(ids=ids, codes=codes, metadata=metadata)


def _read_ids(column: pa.ChunkedArray) -> list[str]:
    try:
        names = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:  # Arrow makes no strings of lists
        names = [None if value is None else str(value) for value in column.to_pylist()]
    return [f"row {row}" if name is None else name for row, name in enumerate(names)]


def check_made_by(path: str | Path, image_tokenizer_hash: str, whose: str) -> None:
    """
    Check that an image tokenizer made the codes of a Parquet file.

    Args:
        path: the Parquet file.
        image_tokenizer_hash: the image tokenizer's [`SeedModel.codes_hash`].
        whose: what has this image tokenizer, for the message, such as "the model".

    Raises:
        ValueError: the file does not say which image tokenizer made its codes, or another one did.
    """
    made_by = (read_metadata(path) or {}).get("image_tokenizer")
    if made_by is None:
        raise ValueError(
            f"{path} does not say which image tokenizer made its codes. Make them with `seed tokenize` or "
            "examples/build_codes.py, or stamp them with seed.data.codes.stamp_codes."
        )
    if made_by != image_tokenizer_hash:
        raise ValueError(
            f"{path}: an image tokenizer with weights {made_by[:12]}... made these codes; {whose} has "
            f"{image_tokenizer_hash[:12]}..., to which they mean other things. Tokenise the pictures again with that "
            "one."
        )


def stamp_codes(data: pa.Table | str | Path, output: str | Path, metadata: CodesMetadata) -> None:
    """
    Write a table of your own (questions, documents, conversations) with what made its codes.

    The language model can then be trained on it:

        rows = [{"codes": [5, 9, ...], "question": "What is it?", "answers": ["a dog", "a poodle"]}, ...]
        metadata = CodesMetadata.of(*load_image_tokenizer("runs/seed"))  # the one that made the codes
        stamp_codes(pyarrow.Table.from_pylist(rows), "vqa.parquet", metadata)

    Args:
        data: an Arrow table or a Parquet file with the columns that [`LanguageFile`] reads.
        output: the Parquet file to write, which may be `data` itself. It is written whole or not at all.
        metadata: what made the codes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the table has no codes; a row (or a segment or message in it) has another number of codes, or a code
            out of range; or the table says that another image tokenizer made them.
    """
    where = "The table" if isinstance(data, pa.Table) else str(data)
    if not isinstance(data, pa.Table):
        read_schema(data)  # names the file if it is not Parquet
        data = pq.read_table(data)
    stored = _metadata_of(data.schema)
    if stored and stored.get("image_tokenizer") != metadata.image_tokenizer:
        raise ValueError(f"{where}: another image tokenizer made its codes. Tokenise the pictures again with this one.")
    nested = [name for name in ("segments", "messages") if name in data.column_names]
    if "codes" not in data.column_names and not nested:
        raise ValueError(f"{where} has no codes; expected a column codes, segments or messages.")
    if "codes" in data.column_names:
        _check_codes(data["codes"], where, metadata.codebook_size, metadata.num_codes)
    for name in nested:
        for row, value in enumerate(data[name].to_pylist()):
            for codes in _codes_within(value):
                column = pa.chunked_array([pa.array([codes])])
                _check_codes(column, f"{where}: {name} of row {row}", metadata.codebook_size, metadata.num_codes)
    stamp = {METADATA_KEY: json.dumps(dataclasses.asdict(metadata)).encode()}
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(output) as temporary:
        pq.write_table(data.replace_schema_metadata((data.schema.metadata or {}) | stamp), temporary)


def _codes_within(value) -> Iterator[list]:
    """Yield the codes of every image in a document's segments or a conversation's messages."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            if item.get("codes") is not None:
                yield item["codes"]
            yield from _codes_within(item.get("content"))


def _check_codes(column: pa.ChunkedArray, where: str, codebook_size: int, num_codes: int) -> torch.LongTensor:
    """Return a column of codes as `(rows, num_codes)` int64, or raise a ValueError that names the row and the value."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise ValueError(f"{where}: the column 'codes' holds {kind}; expected lists of {num_codes} integers.")
    column = column.cast(pa.large_list(pa.int64()))
    lengths = pa.compute.fill_null(pa.compute.list_value_length(column), 0).to_numpy()
    wrong = np.flatnonzero(lengths != num_codes)
    if len(wrong):
        raise ValueError(
            f"{where}: row {wrong[0]} has {lengths[wrong[0]]} codes; this model's pictures have {num_codes}. Were "
            "they made with another image tokenizer?"
        )
    values = pa.compute.fill_null(pa.compute.list_flatten(column), -1).to_numpy().reshape(-1, num_codes)
    bad = np.argwhere((values < 0) | (values >= codebook_size))
    if len(bad):
        row, position = bad[0]
        raise ValueError(
            f"{where}: code {values[row, position]} in row {row}, position {position}, is out of range; this model's "
            f"codes are 0 .. {codebook_size - 1}. Were they made with another image tokenizer, or are they token ids "
            "of a language model?"
        )
    return torch.from_numpy(values.astype(np.int64))


__all__ = [
    "CodesFile",
    "CodesMetadata",
    "check_made_by",
    "codes_schema",
    "read_codes",
    "read_metadata",
    "read_schema",
    "stamp_codes",
]
