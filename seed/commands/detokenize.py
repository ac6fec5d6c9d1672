"""`seed detokenize`: draw every row of a Parquet file of codes."""

import argparse

from .checks import check_file, check_model, check_output_folder
from .loading import load_pipeline
from .options import add_decoder_option, add_model_options, add_seed_option


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "detokenize",
        help="draw every row of a Parquet file of codes",
        description="Draws every row of a Parquet file of codes, and writes the drawings to a folder.",
    )
    parser.add_argument("codes", metavar="FILE", help="a file that `seed tokenize` has written")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder for the drawings")
    add_seed_option(parser, "row r is drawn from noise of seed N + r")
    parser.add_argument("--force", action="store_true", help="also draw codes that another image tokenizer made")
    add_model_options(parser, batch_size=16)
    add_decoder_option(parser)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    check_file(args.codes)
    check_output_folder(args.output)
    check_model(args.model, args.decoder)


def run(args: argparse.Namespace) -> None:
    from ..data.detokenization import draw_codes, open_codes

    pipeline = load_pipeline(args)
    pipeline.set_progress_bar_config(disable=True)  # one bar over all pictures is enough
    codes = open_codes(args.codes, pipeline, any_tokenizer=args.force)
    paths = draw_codes(pipeline, codes, args.output, args.seed, args.batch_size)
    print(f"Wrote {len(paths)} drawings to {args.output}.")
