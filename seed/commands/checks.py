"""Checks of what the user gives. They run before torch is imported, and raise errors that say what is wrong."""

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

# A name, or an owner and a name, by the rules of huggingface_hub's `validate_repo_id`.
_HUB_ID = re.compile(r"(\b[\w\-.]+\b/)?\b[\w\-.]{1,96}\b")
_DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_exists(*paths: str) -> None:
    """Raise FileNotFoundError if one of the paths is neither a file nor a folder."""
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder.")


def check_file(path: str) -> None:
    """Raise FileNotFoundError if there is no such file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file.")


def check_image_root(folder: str | None) -> None:
    """Raise FileNotFoundError if `--image-root` is given and is not a folder."""
    if folder is not None and not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: --image-root is not a folder.")


def check_model(*names: str | None) -> None:
    """Raise FileNotFoundError if a name is neither a folder nor a possible Hub id; None means the default."""
    for name in names:
        if name is None or os.path.isdir(name):
            continue
        if not _HUB_ID.fullmatch(name) or "--" in name or ".." in name:
            raise FileNotFoundError(f"{name!r} is no folder here, and no id of a repository on the Hub.")


def check_data(source: str | None, format: str | None = None) -> None:
    """Raise FileNotFoundError if a source of image-text data is no file, folder, pattern or id of a Hub data set."""
    if source is None or format == "hub" or os.path.exists(source) or glob.glob(source):
        return
    if not _DATASET_ID.fullmatch(source) or os.path.exists(os.path.dirname(source)):
        raise FileNotFoundError(f"{source}: no such file or folder, nor is this the id of a data set (owner/name).")


def check_picture(path: str) -> None:
    """Raise FileNotFoundError if there is no such file, InvalidImageError (a ValueError) if it cannot be opened."""
    check_exists(path)
    from ..data.images import check_image

    check_image(Path(path))


def check_words(name: str, text: str) -> None:
    """Raise ValueError if the text is blank."""
    if not text.strip():
        raise ValueError(f"The {name} is {text!r}; expected words.")


def check_output_folder(path: str | Path) -> None:
    """
    Check that a folder can be made or, if it exists, be written to.

    Raises:
        NotADirectoryError: the path, or a folder above it, is a file.
        PermissionError: the user may not write to it.
    """
    path = Path(os.path.abspath(path))
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing}: not a folder, so nothing can be written to it.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing}: you may not write to this folder.")


def check_output_file(path: str | Path) -> None:
    """
    Check that a file can be written; its verb makes missing folders.

    Raises:
        IsADirectoryError: the path is a folder.
        NotADirectoryError, PermissionError: its folder cannot be written to (see [`check_output_folder`]).
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: this is a folder; name a file to write.")
    check_output_folder(Path(path).parent)


def check_output_picture(path: str | Path) -> None:
    """
    Check that a picture can be written.

    Raises:
        FileNotFoundError, ValueError: its folder does not exist, or no image format has its suffix.
        IsADirectoryError, NotADirectoryError, PermissionError: see [`check_output_file`].
    """
    check_output_file(path)
    if not Path(path).parent.is_dir():  # check_image_path says the same, but importing it takes four times as long
        raise FileNotFoundError(f"{Path(path).parent}: no such folder to write {Path(path).name} to.")
    from ..data.images import check_image_path

    check_image_path(path)


def check_new_folder(path: str | Path, overwrite: bool) -> None:
    """
    Check that a model's folder can be made.

    Raises:
        FileExistsError: it exists, and `overwrite` is false.
        NotADirectoryError, PermissionError: see [`check_output_folder`].
    """
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists already; choose another output or pass --overwrite.")
    check_output_folder(Path(path).parent)


def check_checkpoints(files: Iterable[tuple[str, str | None]]) -> None:
    """
    Check that the files of a released checkpoint exist.

    Args:
        files: what each file is, and its path; None means that the user gave no such file.

    Raises:
        FileNotFoundError: a file is missing.
    """
    for what, path in files:
        if path is not None and not os.path.isfile(path):
            raise FileNotFoundError(f"There is no {what} at {path!r}; check the path.")


__all__ = [
    "check_checkpoints",
    "check_data",
    "check_exists",
    "check_file",
    "check_image_root",
    "check_model",
    "check_new_folder",
    "check_output_file",
    "check_output_folder",
    "check_output_picture",
    "check_picture",
    "check_words",
]
