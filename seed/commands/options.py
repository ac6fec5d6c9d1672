"""Argument types and options that the verbs of the `seed` command share."""

import argparse
import math

from .. import default_model

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_JUDGE = "efficientnet-lite2"


def positive(text: str) -> int:
    """Read a whole number of at least 1, for argparse's `type`."""
    number = _number(int, text, "whole number")
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def noise_seed(text: str) -> int:
    """Read the seed of a random generator, 0 .. 2**63 - 1, for argparse's `type`."""
    number = _number(int, text, "whole number")
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{number} is not within 0 .. 2**63 - 1")
    return number


def scale(text: str) -> float:
    """Read a finite number of at least 0, for argparse's `type`."""
    number = _number(float, text, "number")
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{number} is not a finite number of at least 0")
    return number


def _number(kind: type, text: str, name: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {name}") from None


def add_model_options(parser: argparse.ArgumentParser, batch_size: int | None = None) -> None:
    """
    Add `--model`, `--dtype`, `--device` and `--batch-size`.

    Args:
        batch_size: the default of `--batch-size`; without one the option is left out.
    """
    add_model_option(parser)
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="the type of all numbers (default: %(default)s)"
    )
    add_device_option(parser)
    if batch_size:
        parser.add_argument(
            "--batch-size",
            type=positive,
            default=batch_size,
            help="how many are computed at a time (default: %(default)s)",
        )


def add_model_option(parser: argparse.ArgumentParser, what: str = "a SEED repository") -> None:
    """Add `--model`, a folder or Hub id of `what`."""
    parser.add_argument("--model", help=f"folder or Hub id of {what} (default: seed-tiny)")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")


def add_decoder_option(parser: argparse.ArgumentParser) -> None:
    """Add `--decoder`."""
    parser.add_argument("--decoder", metavar="MODEL", help="another Stable Diffusion 1.x model to draw with")


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how `--data` is read: `--format` and `--image-root`."""
    parser.add_argument(
        "--format", help="the format of --data, where its name does not tell it (coco, karpathy, ...; see seed.data)"
    )
    add_image_root_option(parser)


def add_image_root_option(parser: argparse.ArgumentParser) -> None:
    """Add `--image-root`."""
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the pictures that JSON, Parquet files and tables name"
    )


def add_max_new_tokens_option(parser: argparse.ArgumentParser) -> None:
    """Add `--max-new-tokens`."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        help="cut longer texts after so many tokens, perhaps within a sentence (default: the model's setting)",
    )


def add_judged_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the evaluations which draw have in common."""
    add_decoder_option(parser)
    parser.add_argument(
        "--judge",
        default=DEFAULT_JUDGE,
        help="what compares pictures: %(default)s (the default), or a folder or Hub id of a CLIP model",
    )
    parser.add_argument("--num-inference-steps", type=positive, help="diffusion steps (default: the model's setting)")
    parser.add_argument("--guidance-scale", type=scale, help="diffusion guidance (default: the model's setting)")


def chosen_model(args: argparse.Namespace) -> str:
    """Return the model that `--model` names, else the folder of seed-tiny."""
    return args.model or default_model()


__all__ = [
    "DEFAULT_JUDGE",
    "DTYPES",
    "add_decoder_option",
    "add_device_option",
    "add_image_root_option",
    "add_judged_drawing_options",
    "add_max_new_tokens_option",
    "add_model_option",
    "add_model_options",
    "add_picture_options",
    "chosen_model",
    "noise_seed",
    "positive",
    "scale",
]
