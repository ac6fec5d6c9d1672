"""`seed reconstruct`: draw one picture again from its codes."""

import argparse
from pathlib import Path

from .checks import check_model, check_output_picture, check_picture
from .loading import load_pipeline
from .options import add_decoder_option, add_model_options, add_seed_option, positive


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "reconstruct",
        help="draw one picture again from its codes",
        description="Prints the codes of a picture, draws it again from them, and writes the drawing to FILE.",
    )
    parser.add_argument("image", metavar="IMAGE", help="the picture")
    parser.add_argument("--output", required=True, metavar="FILE", help="the drawing to write")
    parser.add_argument(
        "--prefix-length", type=positive, metavar="K", help="draw from the first K codes only (default: all of them)"
    )
    add_seed_option(parser, "seed of the noise that the drawing starts from")
    add_model_options(parser)
    add_decoder_option(parser)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    check_picture(args.image)
    check_model(args.model, args.decoder)
    check_output_picture(args.output)


def run(args: argparse.Namespace) -> None:
    import torch

    from ..data.images import load_image, save_image

    image = load_image(Path(args.image))
    generator = torch.Generator().manual_seed(args.seed)
    drawn = load_pipeline(args)(images=image, prefix_length=args.prefix_length, generator=generator)
    save_image(drawn.images[0], args.output)
    print(f"codes {' '.join(map(str, drawn.codes[0].tolist()))}")
    print(f"Wrote {args.output}.")
