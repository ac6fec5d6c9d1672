"""Argument types and options that the verbs of the `seed` command share."""

import argparse
import math

from .. import default_model

# argparse shows these in place of an option's name in capitals.
COUNT, NUMBER = "N", "X"
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_JUDGE = "efficientnet-lite2"


class HelpFormatter(argparse.HelpFormatter):
    """A formatter that gives long verbs room. argparse forgets that it indents verbs, and breaks their lines."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if action.nargs == argparse.PARSER:  # the action that holds the verbs
            self._action_max_length += self._indent_increment


def positive(text: str) -> int:
    """Read a whole number of at least 1, for argparse's `type`."""
    number = _number(int, text, "whole number")
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a {name}") from None


def add_model_options(parser: argparse.ArgumentParser, batch_size: int | None = None) -> None:
    """
    Add `--model`, `--dtype`, `--device` and `--batch-size`.

    Args:
        batch_size: the default of `--batch-size`; None leaves the option out.
    """
    add_model_option(parser)
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="the type of the model's numbers (default: %(default)s)"
    )
    add_device_option(parser)
    if batch_size:
        add_batch_size_option(parser, batch_size)


def add_model_option(parser: argparse.ArgumentParser, what: str = "a SEED repository") -> None:
    """Add `--model`, a folder or Hub id of `what`."""
    parser.add_argument("--model", help=f"folder or Hub id of {what} (default: seed-tiny)")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")


def add_batch_size_option(parser: argparse.ArgumentParser, default: int) -> None:
    """Add `--batch-size`."""
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=default,
        metavar=COUNT,
        help="how many inputs are computed at a time (default: %(default)s)",
    )


def add_seed_option(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--seed`; `help` says what it seeds."""
    parser.add_argument("--seed", type=noise_seed, default=0, metavar=COUNT, help=f"{help} (default: 0)")


def add_limit_option(parser: argparse.ArgumentParser, help: str) -> None:
    """Add `--limit`; `help` says what it limits to N."""
    parser.add_argument("--limit", type=positive, metavar=COUNT, help=f"{help}, chosen at random (default: all)")


def add_diffusion_options(parser: argparse.ArgumentParser) -> None:
    """Add `--num-inference-steps` and `--guidance-scale`."""
    parser.add_argument(
        "--num-inference-steps", type=positive, metavar=COUNT, help="diffusion steps (default: the model's setting)"
    )
    parser.add_argument(
        "--guidance-scale", type=scale, metavar=NUMBER, help="diffusion guidance (default: the model's setting)"
    )


def add_decoder_option(parser: argparse.ArgumentParser) -> None:
    """Add `--decoder`."""
    parser.add_argument("--decoder", metavar="MODEL", help="another Stable Diffusion 1.x model to draw with")


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how `--data` is read: `--format` and `--image-root`."""
    parser.add_argument(
        "--format", help="the format of --data if its name does not tell it (coco, karpathy, ...; see seed.data)"
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
        metavar=COUNT,
        help="cut texts after N tokens, even within a sentence (default: the model's setting)",
    )


def add_judged_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all evaluations of drawings share."""
    add_decoder_option(parser)
    parser.add_argument(
        "--judge",
        metavar="MODEL",
        default=DEFAULT_JUDGE,
        help="the model that compares pictures: folder or Hub id of a CLIP model (default: %(default)s)",
    )
    add_diffusion_options(parser)


def chosen_model(args: argparse.Namespace) -> str:
    """Return the model that `--model` names, or by default the folder of seed-tiny."""
    return args.model or default_model()


__all__ = [
    "COUNT",
    "DEFAULT_JUDGE",
    "DTYPES",
    "NUMBER",
    "HelpFormatter",
    "add_batch_size_option",
    "add_decoder_option",
    "add_device_option",
    "add_diffusion_options",
    "add_image_root_option",
    "add_judged_drawing_options",
    "add_limit_option",
    "add_max_new_tokens_option",
    "add_model_option",
    "add_model_options",
    "add_picture_options",
    "add_seed_option",
    "chosen_model",
    "noise_seed",
    "positive",
    "scale",
]
