"""`seed evaluate`: score an image tokenizer or a language model, and write scores and predictions to a folder."""

import argparse

from . import evaluate_language
from .checks import check_data, check_file, check_image_root, check_model, check_output_folder
from .loading import chosen_device, open_pictures, open_training_pictures
from .options import (
    COUNT,
    DEFAULT_JUDGE,
    HelpFormatter,
    add_batch_size_option,
    add_device_option,
    add_judged_drawing_options,
    add_limit_option,
    add_model_option,
    add_picture_options,
    add_seed_option,
    chosen_model,
    positive,
)


def add_parser(verbs) -> None:
    """Add the verb, with all of its tasks, to the command line."""
    parser = verbs.add_parser(
        "evaluate",
        help="score an image tokenizer or a language model",
        description="Prints scores, and writes them and the predictions to a folder. `seed evaluate TASK --help` "
        "explains a task.",
        formatter_class=HelpFormatter,
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    _add_retrieval(tasks)
    _add_reconstruction(tasks)
    _add_text(tasks)
    evaluate_language.add_tasks(tasks)


def _add_retrieval(tasks) -> None:
    parser = tasks.add_parser(
        "retrieval",
        help="image-text retrieval with causal embeddings and with codes (the paper's Table 1)",
        description="Prints recalls both ways and writes retrieval.json and the predictions to --output.",
    )
    _add_common(parser, batch_size=64)
    parser.add_argument(
        "--bidirectional", metavar="MODEL", help="also score this bidirectional Q-Former, in the first row"
    )
    parser.add_argument(
        "--texts",
        choices=["name", "captions"],
        default="name",
        help="match pictures with their name (column `name`, else the first caption) or all captions (default: name)",
    )
    parser.add_argument(
        "--train-data",
        metavar="PATH_OR_ID",
        help="training data; the nearest training picture is a floor of the scores",
    )
    parser.add_argument("--train-split", metavar="SPLIT", help="the split of --train-data")
    parser.set_defaults(check=check_retrieval, run=run_retrieval)


def _add_reconstruction(tasks) -> None:
    parser = tasks.add_parser(
        "reconstruction",
        help="similarity of pictures and their reconstructions from codes (the paper's Table 2)",
        description="Prints similarities and writes reconstruction.json and the predictions to --output.",
    )
    _add_common(parser, batch_size=16)
    add_judged_drawing_options(parser)
    add_limit_option(parser, "draw N pictures")
    parser.add_argument(
        "--prefix-lengths",
        type=_integers,
        default=(),
        metavar="1,2,4",
        help="also draw from the first K codes, for every K in this list",
    )
    add_seed_option(parser, "seed of the noise and of the choice that --limit makes")
    parser.set_defaults(check=check_reconstruction, run=run_reconstruction)


def _add_text(tasks) -> None:
    parser = tasks.add_parser(
        "text",
        help="perplexity of a language model on text, beside that of the text model from which it was made",
        description="Prints perplexities and writes text.json and text_predictions.parquet to --output.",
    )
    add_model_option(parser, "any causal language model")
    parser.add_argument("--base", metavar="MODEL", help="also score this model: the text model before training")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="a .parquet or .jsonl file, or a text file with one document per line",
    )
    parser.add_argument(
        "--column", default="text", help="the column that holds the text, if --data is a table (default: text)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder for scores and predictions")
    parser.add_argument(
        "--context", type=positive, metavar=COUNT, help="tokens per window (default: all that the model can read)"
    )
    add_limit_option(parser, "score N documents")
    add_seed_option(parser, "seed of the choice that --limit makes")
    add_batch_size_option(parser, 16)
    add_device_option(parser)
    parser.set_defaults(check=check_text, run=run_text)


def _add_common(parser: argparse.ArgumentParser, batch_size: int) -> None:
    add_model_option(parser)
    parser.add_argument("--data", required=True, metavar="PATH_OR_ID", help="pictures and captions, see seed.data")
    parser.add_argument("--split", help="the split of --data")
    add_picture_options(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder for scores and predictions")
    add_batch_size_option(parser, batch_size)
    add_device_option(parser)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1,2,4") from error


def _check_common(args: argparse.Namespace) -> None:
    check_data(args.data, args.format)
    check_image_root(args.image_root)
    check_output_folder(args.output)
    check_model(args.model)


def check_retrieval(args: argparse.Namespace) -> None:
    _check_common(args)
    check_data(args.train_data, args.format if args.train_data == args.data else None)
    check_model(args.bidirectional)


def run_retrieval(args: argparse.Namespace) -> None:
    from ..evaluation.retrieval import evaluate_retrieval

    evaluate_retrieval(
        open_pictures(args, args.split),
        args.output,
        chosen_model(args),
        bidirectional=args.bidirectional,
        train_pictures=open_training_pictures(args),
        texts=args.texts,
        batch_size=args.batch_size,
        device=str(chosen_device(args)),
    )


def check_reconstruction(args: argparse.Namespace) -> None:
    _check_common(args)
    check_model(args.decoder, None if args.judge == DEFAULT_JUDGE else args.judge)


def run_reconstruction(args: argparse.Namespace) -> None:
    from ..evaluation.judge import load_judge
    from ..evaluation.reconstruction import Drawer, evaluate_reconstruction

    device = str(chosen_device(args))
    judge = load_judge(args.judge, device)
    pictures = open_pictures(args, args.split)
    drawer = Drawer(chosen_model(args), args.decoder, args.num_inference_steps, args.guidance_scale, args.seed, device)
    evaluate_reconstruction(pictures, args.output, drawer, judge, args.limit, args.prefix_lengths, args.batch_size)


def check_text(args: argparse.Namespace) -> None:
    check_file(args.data)
    check_output_folder(args.output)
    check_model(args.model, args.base)


def run_text(args: argparse.Namespace) -> None:
    from ..evaluation.perplexity import TextSet, evaluate_text

    data = TextSet.load(args.data, args.column, args.limit, args.seed)
    device = str(chosen_device(args))
    evaluate_text(data, args.output, chosen_model(args), args.base, args.batch_size, args.context, device)
