"""Loading what the options name: device, dtype, pipeline, language model, pictures to evaluate on."""

import argparse

from .options import chosen_model


def chosen_device(args: argparse.Namespace):
    """
    Return the torch device that `--device` names; by default the GPU, if there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch

    name = args.device
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no GPU that torch can use.")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails if the device is not there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: expected cpu, cuda, or cuda:N of a GPU that is here.") from error
    return device


def chosen_dtype(args: argparse.Namespace):
    """Return the torch dtype that `--dtype` names."""
    import torch

    return getattr(torch, args.dtype)


def load_pipeline(args: argparse.Namespace, **options):
    """
    Load the [`SeedPipeline`] that `--model`, `--decoder`, `--dtype` and `--device` describe.

    Args:
        options: further arguments of `SeedPipeline.from_pretrained`.
    """
    from ..pipeline_seed import SeedPipeline

    device = chosen_device(args)
    pipeline = SeedPipeline.from_pretrained(
        chosen_model(args), decoder=args.decoder, dtype=chosen_dtype(args), **options
    )
    pipeline.set_progress_bar_config(disable=not args.debug)
    return pipeline.to(device)


def load_language_pair(name: str, device="cpu", dtype=None):
    """
    Load the language model of a SEED repository and its processor, which tokenises pictures on the same device.

    Args:
        name: the folder or Hub id of the repository.
        dtype: the type of the language model's numbers; None takes the type in which they are stored.

    Raises:
        ValueError: the repository has no language model, or its processor is made for another one.
    """
    from ..modeling_seed_language import load_language_model
    from ..processing_seed import SeedProcessor

    model = load_language_model(name, dtype=dtype or "auto").to(device)
    processor = SeedProcessor.from_pretrained(name).to(device)
    processor.check_language_model(model)
    return model, processor


def word_options(args: argparse.Namespace) -> dict:
    """Return `--max-new-tokens`, if it is given, as an argument of `write_captions` and `write_answers`."""
    return {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}


def open_pictures(args: argparse.Namespace, split: str | None):
    """Open a split of `--data` as a [`PictureSet`]."""
    from ..evaluation.pictures import PictureSet

    return PictureSet(args.data, split, args.format, args.image_root)


def open_training_pictures(args: argparse.Namespace):
    """Open `--train-data` as a [`PictureSet`]; return None if it is not given."""
    from ..evaluation.pictures import PictureSet

    if not args.train_data:
        return None
    same = args.format if args.train_data == args.data else None
    return PictureSet(args.train_data, args.train_split, same, args.image_root)


__all__ = [
    "chosen_device",
    "chosen_dtype",
    "load_language_pair",
    "load_pipeline",
    "open_pictures",
    "open_training_pictures",
    "word_options",
]
