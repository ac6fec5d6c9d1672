"""Open any picture as plain RGB, or say what is wrong with it."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Decoded size over which a picture counts as a decompression bomb: Pillow's own limit for an error (it warns at half
# of it), 540 MB as RGB. A 20,000 x 8,900 panorama passes.
MAX_PIXELS = 178_956_970

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

ImageSource = str | os.PathLike | bytes | dict | Image.Image


class InvalidImageError(ValueError):
    """A source that is no usable picture. The message names the source, what is wrong and what to do.

    Attributes:
        source: name of the source, as `describe` gives it.
        fault: what is wrong, in words that are the same for every source, so that faults can be counted.
    """

    def __init__(self, source: str, fault: str, advice: str, detail: str = ""):
        super().__init__(source, fault, advice, detail)  # all of it, so that the error survives pickling
        self.source, self.fault, self.advice, self.detail = source, fault, advice, detail

    def __str__(self) -> str:
        return f"{self.source}: {self.fault}{f' ({self.detail})' if self.detail else ''}. {self.advice}"


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB, upright, on white where it was transparent.

    EXIF orientation is applied; CMYK goes through its embedded colour profile where it has one; 16-bit and float
    pictures are scaled to 8 bits, not clipped; of an animated file the first frame
    is taken (of an open PIL image the frame it stands at).

    Args:
        source: a path, the bytes of a file, a PIL image, or what `datasets.Image(decode=False)` yields,
            `{"bytes": ..., "path": ...}`.
        max_pixels: largest width times height; more is refused before it is decoded. Pillow has the same limit; to
            go over it, raise `PIL.Image.MAX_IMAGE_PIXELS` as well.

    Raises:
        InvalidImageError: no such file, empty, no image, truncated, or larger than `max_pixels`.
    """
    from ..image_processing_seed import upright_rgb  # imports torch, which checking and listing pictures do not need

    with _opened(source, max_pixels) as image:
        return upright_rgb(image)


def check_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> None:
    """
    Check that [`load_image`] can read a picture. Unlike it this needs no torch.

    Raises:
        InvalidImageError: see [`load_image`].
    """
    with _opened(source, max_pixels) as image:
        image.load()


@contextlib.contextmanager
def _opened(source: ImageSource, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture; whatever fails while it is open is raised as InvalidImageError."""
    name = describe(source)
    try:
        if isinstance(source, Image.Image):
            _check_size(source, name, max_pixels)
            yield source
            return
        with warnings.catch_warnings():
            # Pillow warns of half its size limit and of odd metadata. Both leave a picture usable.
            warnings.simplefilter("ignore")
            with Image.open(_readable(source, name)) as image:
                _check_size(image, name, max_pixels)
                yield image
    except InvalidImageError:
        raise
    except Exception as error:  # what Pillow's decoders raise on damaged files differs by format
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
    """What is wrong and what to do, from what was raised."""
    for kind, fault, advice in _FAULTS:
        if isinstance(error, kind):
            return fault, advice
    return DAMAGED, "Fetch it again, or remove it."


def describe(source: ImageSource) -> str:
    """Short name of a source for messages and reports."""
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
    if isinstance(source, dict):
        if source.get("bytes") is None and not source.get("path"):
            raise InvalidImageError(name, "no bytes", "Give a dict with 'bytes' or 'path'.", f"keys {sorted(source)}")
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, (str, os.PathLike)):
        if os.path.isfile(source) and os.path.getsize(source) == 0:
            raise InvalidImageError(name, "no bytes", "The file is empty: fetch it again, or remove it.")
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise InvalidImageError(name, "no bytes", "Fetch the image again, or remove it.")
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
    """Images in a folder and those below it, also where links lead; broken links too, which opening will name."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:  # a link back up
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        # In one order everywhere, links last: a picture goes by its own folder's name where it has one.
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
    """Image files among `paths`: files as given, folders searched recursively; sorted within each folder, no repeats.

    A file that is named is taken whatever its suffix (opening it will tell); in folders, files count as images by
    suffix (`IMAGE_SUFFIXES`), and hidden files and folders are left out.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: no paths, or a folder without images.
    """
    paths = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
    if not paths:
        raise ValueError("no paths given: name at least one image or a folder with images.")
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            images = sorted(images_below(path))
            if not images:
                raise ValueError(f"{path}: no images in this folder; looked for {', '.join(sorted(IMAGE_SUFFIXES))}.")
            found.update(dict.fromkeys(images))
        elif path.exists():
            found[path] = None
        else:
            raise FileNotFoundError(f"{path}: no such file or folder.")
    return list(found)


def check_image_path(path: str | Path) -> Path:
    """
    Check that [`save_image`] can write to a path, before the work that makes the image.

    Returns:
        The path.

    Raises:
        ValueError: no image format has its suffix.
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write {path.name} to.")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{path}: no image format has the suffix {path.suffix!r}; use .png or .jpg.")
    return path


def save_image(image: Image.Image, path: str | Path) -> None:
    """Save an image, all or nothing; the format is that of the file's suffix (see [`check_image_path`])."""
    path = check_image_path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        image.save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shipped_pictures() -> list[Path]:
    """List the pictures that come with the package; `ATTRIBUTION.tsv` beside them names authors and licences."""
    folder = Path(str(resources.files("seed"))) / "assets" / "demo"
    lines = (folder / "ATTRIBUTION.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [folder / line.split("\t")[0] for line in lines]
