"""The file of codes: one Parquet row per picture, and what made them in its schema's metadata."""

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..modeling_seed import SeedModel
from .provenance import preprocessing_hash

METADATA_KEY = b"seed"


@dataclass(frozen=True)
class CodesMetadata:
    """
    Args:
        image_tokenizer: hash of the weights that made the codes, see [`SeedModel.codes_hash`].
        preprocessing: hash of the image processor's settings.
        dtype: in which the codes were computed, "float32" unless asked otherwise.
        codebook_size, num_codes: codes are 0 .. codebook_size - 1, num_codes of them per picture.
    """

    image_tokenizer: str
    preprocessing: str
    dtype: str
    codebook_size: int
    num_codes: int

    @classmethod
    def of(cls, model: SeedModel, image_processor) -> "CodesMetadata":
        """What `model` writes beside codes that it makes now."""
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
    Args:
        ids: of the pictures: the path, the data set's own id, or the row number there.
        codes: `(pictures, num_codes)` int64.
        metadata: what made the codes; None in a file that `seed tokenize` did not write.
    """

    ids: list[str]
    codes: torch.LongTensor
    metadata: CodesMetadata | None


def codes_schema(metadata: CodesMetadata, with_captions: bool) -> pa.Schema:
    """`id`, `codes` (32 x int32) and, of image-text data, `captions`."""
    fields = [pa.field("id", pa.string()), pa.field("codes", pa.list_(pa.int32(), metadata.num_codes))]
    if with_captions:
        fields.append(pa.field("captions", pa.list_(pa.string())))
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(dataclasses.asdict(metadata))})


def read_metadata(path: str | Path) -> dict | None:
    """The metadata of a file of codes as a dict; None if there are none."""
    try:
        stored = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file, or a truncated one ({error}).") from error
    return json.loads(stored) if stored else None


def read_codes(path: str | Path, codebook_size: int, num_codes: int) -> CodesFile:
    """
    Reads and checks a file of codes.

    Args:
        path: a Parquet file with a column `codes` of integer lists and, if it has one, `id`.
        codebook_size, num_codes: what every row has to fit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not Parquet; no column `codes`, or not of integers; a row with another number of codes, or with a
            code out of range. The message names file, row and value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    stored = read_metadata(path)
    found = pq.read_schema(path).names
    if "codes" not in found:
        raise ValueError(f"{path}: has no column 'codes'; it has {', '.join(found) or 'none'}.")
    table = pq.read_table(path, columns=[name for name in ("id", "codes") if name in found])
    codes = _check_codes(table["codes"], str(path), codebook_size, num_codes)
    ids = _read_ids(table["id"]) if "id" in found else [str(row) for row in range(len(codes))]
    known = {field.name for field in dataclasses.fields(CodesMetadata)}
    metadata = CodesMetadata(**stored) if stored and stored.keys() == known else None
    return CodesFile(ids=ids, codes=codes, metadata=metadata)


def _read_ids(column: pa.ChunkedArray) -> list[str]:
    try:
        names = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:  # lists and the like
        names = [None if value is None else str(value) for value in column.to_pylist()]
    return [f"row {row}" if name is None else name for row, name in enumerate(names)]


def check_made_by(path: str | Path, image_tokenizer_hash: str, whose: str) -> None:
    """
    Whether the codes of a Parquet file are those of an image tokenizer.

    Args:
        image_tokenizer_hash: [`SeedModel.codes_hash`] of it.
        whose: what needs its codes, for the message.

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
    Writes a table of one's own (questions, documents, conversations) with what made its codes, all or nothing, so that
    the language model can be trained on it.

        rows = [{"codes": [5, 9, ...], "question": "What is it?", "answers": ["a dog", "a poodle"]}, ...]
        metadata = CodesMetadata.of(*load_image_tokenizer("runs/seed"))  # that made the codes
        stamp_codes(pyarrow.Table.from_pylist(rows), "vqa.parquet", metadata)

    Args:
        data: an Arrow table or a Parquet file with the columns that [`LanguageFile`] reads.
        output: the Parquet file to write; may be the same as `data`.
        metadata: of the image tokenizer that made the codes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no codes; a row (or a segment or message in it) with another number of codes, or a code out
            of range; another image tokenizer's codes.
    """
    where = "The table" if isinstance(data, pa.Table) else str(data)
    if not isinstance(data, pa.Table):
        if not Path(data).is_file():
            raise FileNotFoundError(f"{data}: no such file.")
        read_metadata(data)  # says so if it is no Parquet file
        data = pq.read_table(data)
    stored = (data.schema.metadata or {}).get(METADATA_KEY)
    if stored and json.loads(stored).get("image_tokenizer") != metadata.image_tokenizer:
        raise ValueError(
            f"{where}: its codes are another image tokenizer's. Tokenise the pictures again with this one."
        )
    nested = [name for name in ("segments", "messages") if name in data.column_names]
    if "codes" not in data.column_names and not nested:
        raise ValueError(f"{where}: has no codes; expected a column codes, segments or messages.")
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
    temporary = output.with_name(output.name + ".tmp")
    pq.write_table(data.replace_schema_metadata((data.schema.metadata or {}) | stamp), temporary)
    os.replace(temporary, output)


def _codes_within(value) -> Iterator[list]:
    """The codes of every image in a document's segments or a conversation's messages."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            if item.get("codes") is not None:
                yield item["codes"]
            yield from _codes_within(item.get("content"))


def _check_codes(column: pa.ChunkedArray, where: str, codebook_size: int, num_codes: int) -> torch.LongTensor:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise ValueError(f"{where}: column 'codes' holds {kind}; expected lists of {num_codes} integers.")
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
    "stamp_codes",
]
