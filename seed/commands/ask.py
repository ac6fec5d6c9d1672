"""`seed ask`: answer a question about a picture."""

import argparse
from pathlib import Path

from .checks import check_model, check_picture, check_words
from .loading import chosen_device, chosen_dtype, load_language_pair, word_options
from .options import add_max_new_tokens_option, add_model_options, chosen_model


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "ask",
        help="answer a question about a picture in a few words",
        description="Prints the language model's answer to a question about a picture.",
    )
    parser.add_argument("image", metavar="IMAGE", help="the picture")
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotation marks")
    add_max_new_tokens_option(parser)
    add_model_options(parser)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    check_words("question", args.question)
    check_model(args.model)
    check_picture(args.image)


def run(args: argparse.Namespace) -> None:
    from ..data.images import load_image
    from ..generation_seed import write_answers

    model, processor = load_language_pair(chosen_model(args), chosen_device(args), chosen_dtype(args))
    image = load_image(Path(args.image))
    print(write_answers(model, processor, args.question, images=[image], **word_options(args))[0])
