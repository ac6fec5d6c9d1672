"""`seed caption`: write a caption for each picture."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .checks import check_model, check_picture
from .loading import chosen_device, chosen_dtype, load_writer
from .options import add_max_new_tokens_option, add_model_options, chosen_model

# This bounds the memory for any number of pictures: each takes some forty tokens in a cache of keys and values.
PICTURES_PER_BATCH = 32


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("caption", help="write a caption for each picture")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    add_max_new_tokens_option(parser)
    add_model_options(parser)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    """Name every picture that cannot be opened, so that all can be put right at once; `run` captions the others."""
    check_model(args.model)
    args.usable, errors = [], []
    for path in args.images:
        try:
            check_picture(path)
            args.usable.append(path)
        except (ValueError, OSError) as error:
            errors.append(error)
    last = errors.pop() if not args.usable else None
    for error in errors:
        print(f"seed: error: {error}", file=sys.stderr)
    if last is not None:
        raise last


def run(args: argparse.Namespace) -> int:
    writer = load_writer(chosen_model(args), chosen_device(args), chosen_dtype(args), args.max_new_tokens)
    for image, caption in zip(args.usable, caption_pictures(writer, args.usable)):
        print(f"{image}: {caption}")
    return 0 if len(args.usable) == len(args.images) else 2


def caption_pictures(writer, paths: Sequence[str]) -> list[str]:
    """
    Write one caption per picture, by the paper's prompt.

    Args:
        writer: see [`load_writer`].
        paths: of the pictures.
    """
    from ..data.images import load_image

    captions = []
    for start in range(0, len(paths), PICTURES_PER_BATCH):
        images = [load_image(Path(path)) for path in paths[start : start + PICTURES_PER_BATCH]]
        captions += writer.caption(writer.processor.tokenize_images(images))
    return captions
