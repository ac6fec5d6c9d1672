"""Icon packages of the `@iconify-json` family: fetching, reading and drawing them.

Such a package holds `icons.json` (SVG bodies by icon name), `info.json` (licence, author, palette) and sometimes
`chars.json` (code points) and `metadata.json` (categories). `npm pack` fetches the packages, and `resvg-py` draws them.
"""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

OVERSAMPLING = 3  # drawn this many times larger, then scaled down: finer edges than resvg's own at 64 pixels


class PackageError(RuntimeError):
    """A package could not be fetched or does not hold what its name promises."""


def fetch_package(name: str, version: str, cache_dir: str | Path) -> Path:
    """Return the folder of the unpacked npm package `name@version`; `npm pack` fetches it unless the cache has it.

    Args:
        name: the package's name with its scope, such as `"@iconify-json/noto"`.
        version: the exact version, so that a rebuild sees the same files.
        cache_dir: the folder that keeps unpacked packages, one folder each.

    Raises:
        PackageError: npm is not installed, the registry does not answer, or the archive is not readable.
    """
    target = Path(cache_dir) / f"{name.lstrip('@').replace('/', '-')}-{version}"
    if (target / "package.json").is_file():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(f"{name}@{version} is not in {cache_dir} and npm was not found: install Node.js with npm.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [npm, "pack", "--silent", "--pack-destination", scratch, f"{name}@{version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tgz"))
        if result.returncode != 0 or len(archives) != 1:
            raise PackageError(f"`{' '.join(command)}` failed ({result.returncode}): {result.stderr.strip()}")
        try:
            with tarfile.open(archives[0]) as archive:
                archive.extractall(Path(scratch) / "unpacked", filter="data")
        except tarfile.TarError as error:
            raise PackageError(f"the archive of {name}@{version} is broken ({error}); try again.") from error
        (Path(scratch) / "unpacked" / "package").rename(target)
    return target


@dataclass(frozen=True)
class IconSet:
    """One unpacked icon package."""

    source: str  # "iconify-json-noto-1.2.9"
    license: str  # SPDX identifier
    author: str
    has_palette: bool  # False: drawn in `currentColor` only
    icons: dict[str, dict]  # icon name -> body, box and, where the set has withdrawn it, "hidden"
    aliases: dict[str, str]  # other name -> icon name; mirrored ones are among the icons, rotated ones left out
    chars: dict[str, str]  # code points ("1f3ff", "1f468-200d-1f466") -> icon name
    categories: dict[str, list[str]] = field(default_factory=dict)  # icon name -> its categories

    @classmethod
    def load(cls, folder: str | Path) -> "IconSet":
        """Read an unpacked package.

        Raises:
            PackageError: the folder lacks `icons.json` or `info.json`, or they are not JSON.
        """
        folder = Path(folder)
        try:
            data = _read_json(folder / "icons.json")
            info = _read_json(folder / "info.json")
            chars = _read_json(folder / "chars.json", missing={})
            metadata = _read_json(folder / "metadata.json", missing={})
        except (OSError, ValueError) as error:
            raise PackageError(f"{folder} is not an @iconify-json package: {error}") from error
        box = {key: data[key] for key in ("left", "top", "width", "height") if key in data}
        icons = {name: {**box, **icon} for name, icon in data["icons"].items()}
        aliases = {}
        for name, alias in data.get("aliases", {}).items():
            turned = {key: alias[key] for key in ("hFlip", "vFlip", "rotate") if alias.get(key)}
            if alias["parent"] not in icons or "rotate" in turned:
                continue
            if turned:
                icons[name] = {**icons[alias["parent"]], **turned}
            else:
                aliases[name] = alias["parent"]
        categories: dict[str, list[str]] = {}
        for category, names in metadata.get("categories", {}).items():
            for name in names:
                categories.setdefault(name, []).append(category)
        return cls(
            source=folder.name,
            license=info["license"].get("spdx", info["license"]["title"]),
            author=info.get("author", {}).get("name", ""),
            has_palette=bool(info.get("palette")),
            icons=icons,
            aliases=aliases,
            chars=chars,
            categories=categories,
        )

    def svg(self, name: str, color: str = "#000000") -> str:
        """Return the whole SVG document of one icon, with `color` in place of `currentColor`."""
        icon = self.icons[name]
        left, top, width, height = (
            icon.get("left", 0),
            icon.get("top", 0),
            icon.get("width", 16),
            icon.get("height", 16),
        )
        body = icon["body"].replace("currentColor", color)
        if icon.get("hFlip"):
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        if icon.get("vFlip"):
            body = f'<g transform="translate(0 {2 * top + height}) scale(1 -1)">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
        )


def _read_json(path: Path, missing: dict | None = None) -> dict:
    if missing is not None and not path.is_file():
        return missing
    return json.loads(path.read_text(encoding="utf-8"))


def draw(svg: str, size: int) -> bytes | None:
    """Return a PNG of an SVG, `size` x `size` pixels in RGB on white, or None where nothing was drawn.

    Raises:
        ImportError: `resvg-py` is not installed.
        ValueError: the SVG cannot be parsed (resvg's own message).
    """
    import resvg_py

    large = OVERSAMPLING * size
    drawn = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=large, height=large))).convert("RGBA")
    canvas = Image.new("RGBA", (large, large), "white")
    canvas.alpha_composite(drawn, ((large - drawn.width) // 2, (large - drawn.height) // 2))
    picture = canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    if all(low == high for low, high in picture.getextrema()):
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def draw_all(
    svgs: Iterable[str], size: int, workers: int = 1, progress: Callable[[Iterator], Iterable] = iter
) -> list[bytes | None]:
    """Draw many SVGs in order, in `workers` processes."""
    one = partial(draw, size=size)
    if workers <= 1:
        return list(progress(map(one, svgs)))
    with ProcessPoolExecutor(workers) as pool:
        return list(progress(pool.map(one, svgs, chunksize=32)))
