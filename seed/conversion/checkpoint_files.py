"""Read released PyTorch checkpoints and write Hub folders, without holding a large model in memory twice."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from ..files_seed import read_json, write_json

# At most one shard is built in memory before it is written.
MAX_SHARD_SIZE = "1GB"


def read_state_dict(path: str | os.PathLike, what: str) -> dict[str, torch.Tensor]:
    """
    Map the tensors of a checkpoint file from disk; a tensor takes memory only once it is used.

    Args:
        path: a `torch.save` file of a state dict, or of a dict that holds one under "model".
        what: name of the file in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, is not a state dict, or holds objects that `weights_only` does not allow.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} at {str(path)!r}; check the path.")
    try:
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"{what} {str(path)!r} cannot be read ({reason}). It is truncated, it is not a PyTorch checkpoint, or it "
            "holds more than tensors and plain values (which is never executed here). Download it again, or save its "
            "state dict alone."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ValueError(
            f"{what} {str(path)!r} holds no state dict: expected names and tensors, at the top or under 'model'."
        )
    return dict(content)


def write_safetensors(
    folder: Path, shapes: dict[str, torch.Tensor], build: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> None:
    """
    Write `model.safetensors`, or shards and their index, building the tensors of one shard at a time.

    Args:
        folder: an existing folder.
        shapes: every tensor of the model, on the meta device.
        build: returns the tensor of a name.
        dtype: dtype of the written tensors.
    """
    plan = split_torch_state_dict_into_shards(
        {name: tensor.to(dtype) for name, tensor in shapes.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_SHARD_SIZE,
    )
    for filename, names in plan.filename_to_tensors.items():
        # No variable holds the shard, so that its memory is free before the next is built.
        save_file(
            {name: build(name).to(dtype).contiguous() for name in names},
            folder / filename,
            metadata={"format": "pt"},
        )
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def check_tensors(whose: str, missing: Iterable[str], misshapen: Iterable[str], unknown: Iterable[str]) -> None:
    """
    Check that the tensors of a checkpoint make up a whole model.

    Args:
        whose: the beginning of the error, which says what the checkpoint is not, and what to do.
        missing, misshapen, unknown: lines about the tensors that are missing, have another shape or have no known use.

    Raises:
        ValueError: one of the lists is not empty; the message has all lines.
    """
    problems = {"missing": missing, "of another shape": misshapen, "of no known use": unknown}
    named = {problem: sorted(set(lines)) for problem, lines in problems.items()}
    if any(named.values()):
        lines = [f"{len(names)} {problem}:\n  " + "\n  ".join(names) for problem, names in named.items() if names]
        raise ValueError(f"{whose} Nothing was written. Tensors\n" + "\n".join(lines))


def check_output(path: str | os.PathLike, overwrite: bool = False, inputs: Iterable[str | os.PathLike] = ()) -> None:
    """
    Check that a converted model may be written to the folder `path`, before the work that makes it.

    Args:
        overwrite: whether a SEED model in `path` may be replaced, with all else in its folder.
        inputs: files and folders from which the model is made.

    Raises:
        FileExistsError: `path` exists, and `overwrite` is false or it is neither a SEED model nor an empty folder.
        ValueError: `overwrite` is true, and an input lies in `path`.
    """
    path = Path(path)
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{str(path)!r} exists already; choose another output or pass --overwrite.")
    inside = [str(file) for file in inputs if Path(file).resolve().is_relative_to(path.resolve())]
    if inside:
        raise ValueError(
            f"{inside[0]!r} lies in the output {str(path)!r}, which --overwrite would delete; choose another output."
        )
    is_empty = path.is_dir() and not any(path.iterdir())
    if not is_empty and read_json(path / "config.json").get("model_type") != "seed":
        raise FileExistsError(
            f"{str(path)!r} holds something else than a SEED model, which --overwrite would delete. Expected an empty "
            "folder, or one that has a config.json with model_type 'seed'; choose another output, or empty it yourself."
        )


@contextmanager
def new_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """
    Give a temporary folder that becomes `path` if the block ends without an error, and is removed otherwise.

    Raises:
        FileExistsError: see [`check_output`].
    """
    path = Path(path)
    check_output(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    replaced = path.parent / f".{path.name}.replaced-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rename(replaced)
        try:
            partial.rename(path)
        except BaseException:
            if replaced.exists():
                replaced.rename(path)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.is_dir():
            shutil.rmtree(replaced)


__all__ = ["check_output", "check_tensors", "new_folder", "read_state_dict", "write_safetensors"]
