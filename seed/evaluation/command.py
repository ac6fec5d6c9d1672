"""The verb `seed evaluate`."""

import argparse

from ..command_line import add_judged_drawing_options, add_picture_options, choose_device, noise_seed, positive
from .language_command import add_language_tasks


def register(subparsers) -> None:
    """Adds `evaluate`, with its tasks `retrieval` and `reconstruction`, to the `seed` command's verbs."""
    parser = subparsers.add_parser("evaluate", help="score an image tokenizer on image-text data")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    _add_retrieval(tasks)
    _add_reconstruction(tasks)
    _add_text(tasks)
    add_language_tasks(tasks)


def _add_retrieval(tasks) -> None:
    parser = tasks.add_parser(
        "retrieval",
        help="image-text retrieval with causal embeddings and with codes (the paper's Table 1)",
        description="Prints recalls both ways and writes retrieval.json and the predictions to --output.",
    )
    _add_common(parser, batch_size=64)
    parser.add_argument("--bidirectional", metavar="MODEL", help="a bidirectional Q-Former, for the first row")
    parser.add_argument(
        "--texts",
        choices=["name", "captions"],
        default="name",
        help="what pictures are matched with: their name (the column, else the first caption), or every caption",
    )
    parser.add_argument("--train-data", metavar="PATH_OR_ID", help="adds the floors: the nearest training picture")
    parser.add_argument("--train-split", metavar="SPLIT", help="of --train-data")
    parser.set_defaults(func=run_retrieval)


def _add_reconstruction(tasks) -> None:
    parser = tasks.add_parser(
        "reconstruction",
        help="similarity of pictures and their reconstructions from codes (the paper's Table 2)",
        description="Prints similarities and writes reconstruction.json and the predictions to --output.",
    )
    _add_common(parser, batch_size=16)
    add_judged_drawing_options(parser)
    parser.add_argument("--limit", type=positive, help="draw so many pictures, chosen at random (default: all)")
    parser.add_argument(
        "--prefix-lengths", type=_integers, default=(), metavar="1,2,4", help="also draw from the first k codes"
    )
    parser.add_argument("--seed", type=noise_seed, default=0, help="of the noise and of --limit's choice")
    parser.set_defaults(func=run_reconstruction)


def _add_text(tasks) -> None:
    parser = tasks.add_parser(
        "text",
        help="perplexity of a language model on text, beside that of the text model it was made from",
        description="Prints perplexities and writes text.json and text_predictions.parquet to --output.",
    )
    parser.add_argument("--model", help="folder or Hub id of any causal language model (default: seed-tiny)")
    parser.add_argument("--base", metavar="MODEL", help="score this one too: the text model before training")
    parser.add_argument("--data", required=True, metavar="FILE", help=".parquet, .jsonl, or a text file by lines")
    parser.add_argument("--column", default="text", help="of --data, where it is a table")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for metrics and predictions")
    parser.add_argument("--context", type=positive, help="tokens of a window (default: the model's positions)")
    parser.add_argument("--limit", type=positive, help="score so many documents, chosen at random (default: all)")
    parser.add_argument("--seed", type=noise_seed, default=0, help="of --limit's choice")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.set_defaults(func=run_text)


def _add_common(parser: argparse.ArgumentParser, batch_size: int) -> None:
    parser.add_argument("--model", help="folder or Hub id of a SEED repository (default: seed-tiny)")
    parser.add_argument("--data", required=True, metavar="PATH_OR_ID", help="pictures and captions, see seed.data")
    parser.add_argument("--split", help="of --data")
    add_picture_options(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for metrics and predictions")
    parser.add_argument("--batch-size", type=positive, default=batch_size)
    parser.add_argument("--device", help="default: the GPU if there is one")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1,2,4") from error


def picture_set(args: argparse.Namespace, split: str | None):
    """A split of `--data`."""
    from .pictures import PictureSet

    return PictureSet(args.data, split, args.format, args.image_root)


def training_pictures(args: argparse.Namespace):
    """What `--train-data` names, None where it was not given."""
    from .pictures import PictureSet

    if not args.train_data:
        return None
    same = args.format if args.train_data == args.data else None
    return PictureSet(args.train_data, args.train_split, same, args.image_root)


def run_retrieval(args: argparse.Namespace) -> int:
    from .retrieval import evaluate_retrieval

    evaluate_retrieval(
        picture_set(args, args.split),
        args.output,
        model_name(args),
        bidirectional=args.bidirectional,
        train_pictures=training_pictures(args),
        texts=args.texts,
        batch_size=args.batch_size,
        device=default_device(args),
    )
    return 0


def run_reconstruction(args: argparse.Namespace) -> int:
    from .judge import load_judge
    from .reconstruction import Drawer, evaluate_reconstruction

    device = default_device(args)
    judge = load_judge(args.judge, device)
    pictures = picture_set(args, args.split)
    drawer = Drawer(model_name(args), args.decoder, args.num_inference_steps, args.guidance_scale, args.seed, device)
    evaluate_reconstruction(pictures, args.output, drawer, judge, args.limit, args.prefix_lengths, args.batch_size)
    return 0


def run_text(args: argparse.Namespace) -> int:
    from .perplexity import TextSet, evaluate_text

    data = TextSet.load(args.data, args.column, args.limit, args.seed)
    device = default_device(args)
    evaluate_text(data, args.output, model_name(args), args.base, args.batch_size, args.context, device)
    return 0


def model_name(args: argparse.Namespace) -> str:
    """The model that was asked for, else seed-tiny."""
    if args.model:
        return args.model
    from .. import default_model

    return default_model()


def default_device(args: argparse.Namespace) -> str:
    """The device that was asked for, else the GPU if there is one."""
    return str(choose_device(args.device))


__all__ = [
    "default_device",
    "model_name",
    "picture_set",
    "register",
    "run_reconstruction",
    "run_retrieval",
    "run_text",
    "training_pictures",
]
