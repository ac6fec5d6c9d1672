"""Build image-text pairs from Open Clip Art, the Debian package `openclipart-svg` (public domain, 25 MB).

    python examples/seed_tiny/build_clip_art.py --output data/emoji64
    python examples/seed_tiny/build_clip_art.py --svg /usr/share/openclipart/svg --output data/emoji64

Without `--svg` the package is fetched by `apt-get download` and unpacked by `dpkg -x` into the cache folder. Needs npm
(the names of the held-out emoji come from the packages that build_emoji.py reads) and `pip install resvg-py datasets`.

Writes `clip_art.parquet`, all of it for training, in the columns of build_emoji.py. Licence and author stand in every
row.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from makers.clip_art import PACKAGE_FOLDER, clip_art_rows, draw_clip_art, read_clip_art
from makers.emoji import TEXT_PACKAGES, held_out_concepts, load_emoji
from makers.iconify import PackageError, fetch_package
from makers.icons import EmojiWords
from makers.picture_table import write_rows
from tqdm import tqdm

DEBIAN_PACKAGE = "openclipart-svg"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    emoji = load_emoji({name: fetch_package(name, version, args.cache_dir) for name, version in TEXT_PACKAGES.items()})
    words = EmojiWords.of(emoji.values(), held_out_concepts(emoji))
    folder = args.svg or fetch_debian_package(args.cache_dir) / PACKAGE_FOLDER
    rows = clip_art_rows(read_clip_art(folder), words)
    drawn, left_out = draw_clip_art(
        rows,
        args.size,
        args.workers,
        args.seconds,
        lambda pictures: tqdm(pictures, total=len(rows), desc="drawing clip art", mininterval=2),
    )
    if left_out:
        print(f"left out, because they are blank, broken or slow to draw: {', '.join(left_out)}")
    path = args.output / "clip_art.parquet"
    write_rows(drawn, path)
    print(f"{path}: {len(drawn)} pictures, {len({row['name'] for row in drawn})} names")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the Parquet file")
    parser.add_argument("--svg", type=Path, help="folder of the SVG files; fetched if not given")
    parser.add_argument("--size", type=int, default=64, help="pixels per side")
    parser.add_argument("--seconds", type=float, default=10.0, help="time that one drawing may take")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "seed" / "npm", help="packages")
    return parser.parse_args(argv)


def fetch_debian_package(cache_dir: Path) -> Path:
    """
    Return the folder with the unpacked Debian package, which is fetched unless the cache has it.

    Raises:
        PackageError: apt-get or dpkg is not there, or fails.
    """
    target = cache_dir / DEBIAN_PACKAGE
    if (target / PACKAGE_FOLDER).is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
        try:
            subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], cwd=scratch, check=True, capture_output=True)
            archive = next(Path(scratch).glob("*.deb"))
            subprocess.run(["dpkg", "-x", archive.name, "unpacked"], cwd=scratch, check=True, capture_output=True)
        except (OSError, StopIteration, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", b"") or b""
            raise PackageError(
                f"Debian's package {DEBIAN_PACKAGE} could not be fetched ({error}; {detail.decode().strip()[-200:]}). "
                "Unpack it elsewhere and give its folder of SVG files with --svg."
            ) from error
        (Path(scratch) / "unpacked").rename(target)
    return target


if __name__ == "__main__":
    main()
