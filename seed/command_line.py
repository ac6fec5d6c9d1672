"""Argument types that the `seed` command's verbs share."""

import argparse


def positive(text: str) -> int:
    """A number of at least 1, for argparse's `type`."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


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
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: expected cpu, cuda or cuda:N.") from error


__all__ = ["choose_device", "positive"]
