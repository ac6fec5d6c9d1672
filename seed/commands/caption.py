"""`seed caption`: write a caption for each picture."""

import argparse
import sys
from pathlib import Path

from .checks import check_model, check_picture
from .loading import chosen_device, chosen_dtype, load_language_pair, word_options
from .options import add_max_new_tokens_option, add_model_options, chosen_model


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "caption",
        help="write a caption for each picture",
        description="Prints each picture's path and the caption that the language model writes for it. Pictures that "
        "cannot be opened are named on stderr; the others are captioned, and the exit code is 2.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="the pictures")
    add_max_new_tokens_option(parser)
    add_model_options(parser)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    """Report every picture that cannot be opened, so that all can be replaced at once; `run` captions the others."""
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
    from ..data.images import load_image
    from ..generation_seed import IMAGES_PER_BATCH, write_captions

    model, processor = load_language_pair(chosen_model(args), chosen_device(args), chosen_dtype(args))
    for start in range(0, len(args.usable), IMAGES_PER_BATCH):  # this bounds the memory for any number of pictures
        paths = args.usable[start : start + IMAGES_PER_BATCH]
        images = [load_image(Path(path)) for path in paths]
        for path, caption in zip(paths, write_captions(model, processor, images=images, **word_options(args))):
            print(f"{path}: {caption}", flush=True)
    return 0 if len(args.usable) == len(args.images) else 2
