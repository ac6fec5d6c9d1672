"""Argument types and options that the `seed` command's verbs share."""

import argparse
import math


def positive(text: str) -> int:
    """A number of at least 1, for argparse's `type`."""
    number = _number(int, text, "whole number")
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def noise_seed(text: str) -> int:
    """The seed of a random generator, 0 .. 2**63 - 1, for argparse's `type`."""
    number = _number(int, text, "whole number")
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{number} is not within 0 .. 2**63 - 1")
    return number


def scale(text: str) -> float:
    """A finite number of at least 0, for argparse's `type`."""
    number = _number(float, text, "number")
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{number} is not a finite number of at least 0")
    return number


def _number(kind: type, text: str, name: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {name}") from None


def add_decoder_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--decoder", metavar="MODEL", help="another Stable Diffusion 1.x model to draw with")


def add_image_root_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the pictures that JSON, Parquet files and tables name"
    )


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", help="of --data, where it cannot be told from the name (coco, karpathy, ...)")
    add_image_root_option(parser)


def add_max_new_tokens_option(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=default,
        help="longer ones are cut, perhaps within a sentence (default: %(default)s)",
    )


def add_judged_drawing_options(parser: argparse.ArgumentParser) -> None:
    """What the evaluations that draw have in common."""
    add_decoder_option(parser)
    parser.add_argument("--judge", default="efficientnet-lite2", help="or a folder or Hub id of a CLIP model")
    parser.add_argument("--num-inference-steps", type=positive, help="diffusion steps (default: the model's setting)")
    parser.add_argument("--guidance-scale", type=scale, help="diffusion guidance (default: the model's setting)")


def choose_device(name: str | None):
    """
    The torch device that `--device` names; the GPU if there is one where it was not given.

    Raises:
        ValueError: no such device, or no GPU here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no GPU that torch can use.")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # whether it is there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: expected cpu, cuda, or cuda:N of a GPU that is here.") from error
    return device


__all__ = [
    "add_decoder_option",
    "add_image_root_option",
    "add_judged_drawing_options",
    "add_max_new_tokens_option",
    "add_picture_options",
    "choose_device",
    "noise_seed",
    "positive",
    "scale",
]
