"""Opening any picture as plain RGB, or saying what is wrong with it; listing and saving pictures."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..files_seed import replacing_file

# A picture with more pixels counts as a decompression bomb. This is Pillow's own limit for an error (it warns at half
# of it) and means 540 MB of RGB. A panorama of 20,000 x 8,900 pixels passes.
MAX_PIXELS = 178_956_970

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

ImageSource = str | os.PathLike | bytes | dict | Image.Image


class InvalidImageError(ValueError):
    """
    An error about a source that is no usable picture. The message says which source, what is wrong, and what to do.

    Attributes:
        source: the name of the source, as [`describe`] gives it.
        fault: what is wrong, in words that are the same for every source, so that faults can be counted.
        advice: what to do.
        detail: what is wrong with this source in particular.
    """

    def __init__(self, source: str, fault: str, advice: str, detail: str = ""):
        super().__init__(source, fault, advice, detail)  # all four, so that the error survives pickling
        self.source, self.fault, self.advice, self.detail = source, fault, advice, detail

    def __str__(self) -> str:
        return f"{self.source}: {self.fault}{f' ({self.detail})' if self.detail else ''}. {self.advice}"


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Open a picture as RGB, upright, and on white if it is transparent, see [`upright_rgb`].

    An animated file gives its first frame, an open PIL image the frame that it stands at.

    Args:
        source: a path, the bytes of a file, a PIL image, or what `datasets.Image(decode=False)` yields,
            `{"bytes": ..., "path": ...}`.
        max_pixels: the largest width times height. A larger picture is refused before it is decoded. Pillow has the
            same limit; to exceed it, raise `PIL.Image.MAX_IMAGE_PIXELS` as well.

    Raises:
        InvalidImageError: the file does not exist, is empty, no image, truncated, or larger than `max_pixels`.
    """
    from ..image_processing_seed import upright_rgb  # imports torch, which checking and listing pictures do not need

    with _opened(source, max_pixels) as image:
        return upright_rgb(image)


def check_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> None:
    """
    Check that [`load_image`] can open a picture: open, measure and decode it. This does not import torch.

    Args:
        source, max_pixels: see [`load_image`].

    Raises:
        InvalidImageError: see [`load_image`].
    """
    with _opened(source, max_pixels) as image:
        image.load()


@contextlib.contextmanager
def _opened(source: ImageSource, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture and check its size. Errors while it is open become InvalidImageErrors that name the fault."""
    name = describe(source)
    try:
        if isinstance(source, Image.Image):
            _check_size(source, name, max_pixels)
            yield source
            return
        with warnings.catch_warnings():
            # Pillow warns of half its size limit and of odd metadata. Such a picture can be used all the same.
            warnings.simplefilter("ignore")
            with Image.open(_readable(source, name)) as image:
                _check_size(image, name, max_pixels)
                yield image
    except InvalidImageError:
        raise
    except Exception as error:  # the errors of Pillow's decoders on damaged files differ by format
        fault, advice = _diagnose(error)
        detail = str(error) if fault == DAMAGED or isinstance(error, Image.DecompressionBombError) else ""
        raise InvalidImageError(name, fault, advice, detail) from error


DAMAGED = "truncated or damaged"
_FAULTS = (
    (FileNotFoundError, "no such file", "Check the path, or the folder that paths are relative to."),
    (IsADirectoryError, "a folder, not an image", "Name the images in it."),
    (PermissionError, "may not be read", "Change its permissions."),
    (UnidentifiedImageError, "not an image that Pillow can read", "Convert it to PNG or JPEG, or remove it."),
    (Image.DecompressionBombError, "too large", "Scale it down first."),
    (MemoryError, "does not fit into memory when decoded", "Scale it down first."),
)


def _diagnose(error: Exception) -> tuple[str, str]:
    """Return what is wrong and what to do, for an error."""
    for kind, fault, advice in _FAULTS:
        if isinstance(error, kind):
            return fault, advice
    return DAMAGED, "Download it again, or remove it."


def describe(source: ImageSource) -> str:
    """Return a short name of a source for messages and reports."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, dict) and source.get("path"):
        return str(source["path"])
    if isinstance(source, dict):
        return describe(source["bytes"]) if source.get("bytes") is not None else "image without bytes and path"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"PIL image ({source.mode}, {source.width} x {source.height})"
    return f"object of type {type(source).__name__}"


def _readable(source: ImageSource, name: str) -> str | io.BytesIO:
    """Return what `PIL.Image.open` can read, or raise InvalidImageError if the source holds nothing."""
    if isinstance(source, dict):
        if source.get("bytes") is None and not source.get("path"):
            raise InvalidImageError(name, "no bytes", "Give a dict with 'bytes' or 'path'.", f"keys {sorted(source)}")
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, (str, os.PathLike)):
        if os.path.isfile(source) and os.path.getsize(source) == 0:
            raise InvalidImageError(name, "no bytes", "The file is empty. Download it again, or remove it.")
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise InvalidImageError(name, "no bytes", "Download the image again, or remove it.")
        return io.BytesIO(source)
    raise InvalidImageError(
        name, "not an image source", "Give a path, bytes, a PIL image or a dict with bytes or path."
    )


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImageError(name, "no pixels", "Remove it.", f"{width} x {height}")
    if width * height > max_pixels:
        detail = f"{width} x {height} pixels, over the limit of {max_pixels:,} that guards against decompression bombs"
        raise InvalidImageError(name, "too large", "Scale it down first.", detail)


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and its sub-folders, also through links. Opening a broken link names the fault."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:  # a link leads back to it
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        # The order is fixed, and links come last, so that a picture is found in its own folder before a link to that.
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")),
            key=lambda name: (Path(root, name).is_symlink(), name),
        )
        for name in files:
            file = Path(root, name)
            if not name.startswith(".") and file.suffix.lower() in IMAGE_SUFFIXES:
                if file.is_file() or file.is_symlink():
                    yield file


def list_images(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """
    List images: the files among `paths`, and those in the folders among them, sorted in each folder, without repeats.

    A file that is named is listed whatever its suffix. In folders and their sub-folders, files count as images by
    suffix (`IMAGE_SUFFIXES`), and hidden files and folders are left out.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there are no paths, or a folder has no images.
    """
    paths = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
    if not paths:
        raise ValueError("There are no paths; name at least one image or a folder with images.")
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            images = sorted(images_below(path))
            if not images:
                raise ValueError(f"{path}: this folder has no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}.")
            found.update(dict.fromkeys(images))
        elif path.exists():
            found[path] = None
        else:
            raise FileNotFoundError(f"{path}: no such file or folder.")
    return list(found)


def check_image_path(path: str | Path) -> Path:
    """
    Check that [`save_image`] can write to a path. Call it before the image is made, which may take long.

    Returns:
        The path.

    Raises:
        ValueError: no image format has the path's suffix.
        FileNotFoundError: the path's folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write {path.name} to.")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{path}: no image format has the suffix {path.suffix!r}; use .png or .jpg.")
    return path


def save_image(image: Image.Image, path: str | Path) -> None:
    """
    Save an image whole or not at all, in the format of the path's suffix.

    Raises:
        ValueError, FileNotFoundError: see [`check_image_path`].
    """
    with replacing_file(check_image_path(path)) as temporary:
        image.save(temporary)


def shipped_pictures() -> list[Path]:
    """List the pictures that come with the package. `ATTRIBUTION.tsv` beside them names their authors and licences."""
    folder = Path(str(resources.files("seed"))) / "assets" / "demo"
    lines = (folder / "ATTRIBUTION.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [folder / line.split("\t")[0] for line in lines]
