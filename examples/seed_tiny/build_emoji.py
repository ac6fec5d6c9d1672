"""Build the emoji set, and more pairs from icon sets, from openly licensed packages.

    python examples/seed_tiny/build_emoji.py --output data/emoji64
    python examples/seed_tiny/build_emoji.py --output data/emoji64 --sets --extra-sets all

The script needs npm (`npm pack` fetches the packages by name), `pip install resvg-py datasets`, and about 250 MB in the
cache folder. On two shared cores the seven emoji sets take about 5 minutes, and the twelve extra sets one minute.

It writes one Parquet file for each split (train, val_concept, val_style, test_concept, test_style, test_both). With
`--extra-sets` it also writes `icons.parquet`, all of which is for training. Every row names its licence and author.
"""

import argparse
import os
from collections import Counter
from pathlib import Path

from makers.emoji import EMOJI_SETS, TEXT_PACKAGES, emoji_rows, held_out_concepts, load_emoji
from makers.iconify import IconSet, fetch_package
from makers.icons import EXTRA_SETS, EmojiWords, icon_rows
from makers.picture_table import draw_rows, write_rows
from tqdm import tqdm

SIBLINGS = {"fluent": "fluent-flat"}  # the same icon names; only the sibling has a table of code points


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    emoji = load_emoji({name: fetch_package(name, version, args.cache_dir) for name, version in TEXT_PACKAGES.items()})
    rows = []
    for style in args.sets:
        sibling = emoji_set(SIBLINGS[style], args.cache_dir) if style in SIBLINGS else None
        rows += emoji_rows(style, emoji_set(style, args.cache_dir), emoji, sibling)
    rows = draw("emoji", rows, args)
    for split in dict.fromkeys(row["split"] for row in rows):
        save([row for row in rows if row["split"] == split], args.output / f"{split}.parquet")

    words = EmojiWords.of(emoji.values(), held_out_concepts(emoji))
    extra = []
    for name in args.extra_sets:
        folder = fetch_package(f"@iconify-json/{name}", EXTRA_SETS[name].version, args.cache_dir)
        extra += icon_rows(name, IconSet.load(folder), words)
    if extra:
        save(draw("icons", extra, args), args.output / "icons.parquet")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the Parquet files")
    parser.add_argument(
        "--sets",
        nargs="*",
        choices=list(EMOJI_SETS),
        default=list(EMOJI_SETS),
        help="emoji sets to draw (default: all)",
    )
    parser.add_argument(
        "--extra-sets", nargs="*", choices=["all", *EXTRA_SETS], default=[], help="icon sets to draw (default: none)"
    )
    parser.add_argument("--size", type=int, default=64, help="pixels on a side of a picture")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that draw (default: one for each core)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=Path.home() / ".cache" / "seed" / "npm", help="folder that keeps the packages"
    )
    args = parser.parse_args(argv)
    args.extra_sets = list(EXTRA_SETS) if "all" in args.extra_sets else args.extra_sets
    return args


def emoji_set(style: str, cache_dir: Path) -> IconSet:
    return IconSet.load(fetch_package(EMOJI_SETS[style].package, EMOJI_SETS[style].version, cache_dir))


def draw(label: str, rows: list[dict], args: argparse.Namespace) -> list[dict]:
    drawn, blank = draw_rows(
        rows,
        args.size,
        args.workers,
        lambda pictures: tqdm(pictures, total=len(rows), desc=f"drawing {label}", mininterval=2),
    )
    if blank:
        print(f"left out, because nothing was drawn: {', '.join(blank)}")
    return drawn


def save(rows: list[dict], path: Path) -> None:
    write_rows(rows, path)
    styles = Counter(row["style"] for row in rows)
    print(f"{path}: {len(rows)} pictures, {len({row['name'] for row in rows})} names, {dict(styles)}")


if __name__ == "__main__":
    main()
