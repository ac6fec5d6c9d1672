"""Reading JSON, and writing files and folders whole: nothing is half written under its own name."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

CONFIG_FILE = "config.json"
# transformers and diffusers give these names to weights, in one file or in shards with their index.
WEIGHT_FILES = ("model*.safetensors*", "diffusion_pytorch_model*.safetensors*")


def read_json(path: Path) -> dict:
    """
    Return the content of a JSON file, or an empty dict if there is no such file.

    Raises:
        ValueError: the file is not JSON.
    """
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download or copy it again.") from error


@contextlib.contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, with the same suffix, to write a file to. It gets its own name once it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file whole, with sorted keys."""
    write_atomically(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def is_weight(item: Path) -> bool:
    """Return whether a file holds a model's weights, or is the index of their shards."""
    return any(item.match(pattern) for pattern in WEIGHT_FILES)


@contextlib.contextmanager
def replacing(output: str | Path) -> Iterator[Path]:
    """
    Yield a new folder inside `output` to save into. Once all is written, `replace_into` moves it into its place.

    A save that fails changes nothing in `output`. The weights that are saved may be mapped from the very files that
    they replace.
    """
    output = Path(output)
    partial = output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_into(partial, output)


def replace_into(partial: Path, output: Path) -> None:
    """
    Move what was saved in `partial` into `output`, where it replaces an earlier save; other files there stay.

    Several files cannot be replaced at once. So the old `config.json` and weights of each model are removed first, also
    those in other shards or of another variant, and the new ones come last: weights, their index, `config.json`. A kill
    in between leaves a folder from which loading fails, never a model of old and new parts. Saving again completes it.

    Args:
        partial: a folder on the same file system, which is removed. Its sub-folders that hold a model are merged with
            those in `output`; its other sub-folders replace them.

    Raises:
        FileNotFoundError: a model in `partial` has no `config.json`. Nothing is moved then.
    """
    files = [path for path in partial.rglob("*") if path.is_file()]
    models = {file.parent for file in files if is_weight(file)}
    for folder in models:
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} has no {CONFIG_FILE}, so it is no saved model; {output} stays as it is. Save the model "
                "there first, with save_pretrained."
            )
    for folder in models:
        target = output / folder.relative_to(partial)
        (target / CONFIG_FILE).unlink(missing_ok=True)
        remove_weights(target)
    for folder in [item for item in partial.iterdir() if item.is_dir()]:
        if not any(model.is_relative_to(folder) for model in models):
            shutil.rmtree(output / folder.name, ignore_errors=True)
    for file in sorted(files, key=_turn):
        target = output / file.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    emptied = [item for item in partial.rglob("*") if item.is_dir()]
    for folder in sorted(emptied, reverse=True) + [partial]:
        folder.rmdir()


def remove_weights(folder: Path) -> None:
    """Remove a model's weights, because shards of an earlier save would be loaded instead of a new single file."""
    for pattern in WEIGHT_FILES:
        for stale in folder.glob(pattern):
            stale.unlink()


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder under a temporary name, then rename it."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


def _turn(item: Path) -> tuple[bool, bool, bool]:
    """Return the sort key of a saved file: other files come first, then weights, their index, and the config last."""
    return item.name == CONFIG_FILE, is_weight(item) and item.suffix == ".json", is_weight(item)


__all__ = [
    "CONFIG_FILE",
    "copy_folder",
    "is_weight",
    "read_json",
    "remove_weights",
    "replace_into",
    "replacing",
    "replacing_file",
    "write_atomically",
    "write_json",
]
