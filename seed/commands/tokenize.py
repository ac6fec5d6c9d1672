"""`seed tokenize`: turn pictures into a Parquet file of codes."""

import argparse
import sys

from .checks import check_exists, check_image_root, check_model, check_output_file
from .loading import chosen_device, chosen_dtype
from .options import add_image_root_option, add_model_options, chosen_model


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "tokenize",
        help="turn pictures into a Parquet file of codes",
        description="Writes `id` and `codes` (and `captions`, if the data have them) of every picture. Pictures that "
        "cannot be opened are listed beside FILE (for codes.parquet in codes.skipped.jsonl), and the exit code is "
        "still 0. If the run is killed, the same command continues where it stopped.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="pictures and folders of pictures, or image-text data (.parquet, .tar, .json, .tsv, .csv)",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the Parquet file to write")
    add_image_root_option(parser)
    parser.add_argument("--split", help="the split to read, if image-text data hold several")
    add_model_options(parser, batch_size=32)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    check_exists(*args.paths)
    check_image_root(args.image_root)
    check_output_file(args.output)
    check_model(args.model)


def run(args: argparse.Namespace) -> None:
    from ..data.tokenization import PictureList, load_image_tokenizer, tokenize_pictures

    pictures = PictureList(args.paths, args.image_root, args.split)
    if pictures.not_downloaded:
        print(f"{pictures.not_downloaded} pictures that the table names were never downloaded. They are left out.")
    model, image_processor = load_image_tokenizer(chosen_model(args), chosen_dtype(args), chosen_device(args))
    summary = tokenize_pictures(pictures, args.output, model, image_processor, args.batch_size)
    for _, name, error in summary.skipped:
        print(f"seed: skipped {error if name in error else f'{name}: {error}'}", file=sys.stderr)
    if summary.continued_from:
        print(f"Continued an earlier run that had done {summary.continued_from} of {len(pictures)} pictures.")
    print(f"Wrote {args.output}: the codes of {summary.tokenized} of {len(pictures)} pictures.")
    if summary.skipped:
        print(f"{len(summary.skipped)} could not be opened; they are listed in {summary.skipped_file}.")
