"""Command-line options that the training scripts share."""

import argparse

from seed.hardware import keep_freed_memory
from seed.training.stage import StageData
from seed.training.trainer import refuse_data_parallel


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser whose help shows a script's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_data_options(parser: argparse.ArgumentParser, what: str = "image-text data", several: bool = False) -> None:
    """
    Add `--data`, `--split` and `--image-root`.

    Args:
        what: the help text of `--data`.
        several: lets `--data` be repeated; the parsed value is then a list.
    """
    if several:
        parser.add_argument("--data", required=True, action="append", help=f"{what}; may be repeated")
    else:
        parser.add_argument("--data", required=True, help=what)
    parser.add_argument("--split", help="the split of --data to read, where it has several")
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the pictures that JSON, Parquet files and tables name"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe`, `--output` and `--max-steps`."""
    parser.add_argument("--recipe", required=True, help="YAML file of the stage, from examples/recipes or your own")
    parser.add_argument("--output", required=True, help="folder for the trained model and its checkpoints")
    parser.add_argument("--max-steps", type=int, help="steps of the run, in place of the recipe's epochs")


def parse_stage_arguments(
    description: str,
    starts_from: str | None,
    extra: dict[str, str] | None = None,
    optional: dict[str, str] | None = None,
) -> argparse.Namespace:
    """
    Parse the command line of a script that trains a stage of the image tokenizer, and prepare its process.

    Args:
        starts_from: the help text of `--init`; None for the stage that creates the model.
        extra: further required options and their help texts.
        optional: further options that may be left out, and their help texts.
    """
    parser = make_parser(description)
    add_run_options(parser)
    add_data_options(parser, several=True)
    parser.add_argument("--extra-data", action="append", default=[], help="more data, with fewer views of each picture")
    parser.add_argument(
        "--feature-cache", help="folder that caches vision features of pictures and augmented views (default: neither)"
    )
    if starts_from:
        parser.add_argument("--init", required=True, help=starts_from)
    for option, text in (extra or {}).items():
        parser.add_argument(option, required=True, help=text)
    for option, text in (optional or {}).items():
        parser.add_argument(option, help=text)
    keep_freed_memory()  # before the features are computed
    parsed = parser.parse_args()
    refuse_data_parallel()
    return parsed


def stage_data(arguments: argparse.Namespace) -> StageData:
    """Return the data that the options of [`parse_stage_arguments`] name."""
    return StageData(arguments.data, arguments.extra_data, arguments.split, arguments.image_root)
