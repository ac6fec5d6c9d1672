"""`seed demo`: turn pictures into codes and draw them again, on one sheet."""

import argparse
import time

from .checks import check_exists, check_model, check_output_picture
from .loading import chosen_device, chosen_dtype
from .options import add_model_options, add_seed_option, chosen_model


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "demo",
        help="turn pictures into codes and draw them again, on one sheet",
        description="Prints the codes and nearest captions of your pictures and of a few that come with the package, "
        "and draws each from its first 1, 2, 4, ... and all codes on one contact sheet. The language model, if there "
        "is one, captions them, answers a question about each, and draws some words.",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="your pictures, or folders of them")
    parser.add_argument(
        "--output", metavar="FILE", default="seed_demo.png", help="the contact sheet (default: %(default)s)"
    )
    add_seed_option(parser, "seed of the noise that drawings start from")
    add_model_options(parser, batch_size=48)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    check_exists(*args.images)
    check_model(args.model)
    check_output_picture(args.output)
    from ..data.images import check_image, list_images

    args.own = list_images(args.images) if args.images else []
    for path in args.own:
        check_image(path)
    args.started = time.monotonic()
    print("Importing torch, transformers and diffusers", flush=True)  # this takes the next seconds


def run(args: argparse.Namespace) -> None:
    from ..data.images import save_image, shipped_pictures
    from .demo_sheet import QUESTION, contact_sheet, run_demo

    rows, drawn_prompts = run_demo(
        chosen_model(args),
        [*args.own, *shipped_pictures()],
        seed=args.seed,
        batch_size=args.batch_size,
        dtype=chosen_dtype(args),
        device=chosen_device(args),
        log=lambda line: print(line, flush=True),
        progress=args.debug,
    )
    for row in rows:
        print(f"\n{row.name}")
        print(f"  codes    {' '.join(map(str, row.codes.tolist()))}")
        if row.captions:
            print(f"  nearest  {', '.join(f'{caption} ({score:.2f})' for caption, score in row.captions)}")
        if row.caption is not None:
            print(f"  caption  {row.caption}")
            print(f"  {QUESTION} {row.answer}")
    save_image(contact_sheet(rows, drawn_prompts), args.output)
    seconds = time.monotonic() - args.started
    print(f"\nWrote {args.output} in {seconds:.0f} s: each picture, and what its first codes draw.")
