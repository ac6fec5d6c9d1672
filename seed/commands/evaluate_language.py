"""The tasks of `seed evaluate` that score a language model on pictures: `caption`, `vqa` and `draw`."""

import argparse

from .checks import check_data, check_exists, check_image_root, check_model, check_output_folder
from .loading import chosen_device, open_pictures, open_training_pictures
from .options import (
    COUNT,
    DEFAULT_JUDGE,
    NUMBER,
    add_batch_size_option,
    add_device_option,
    add_image_root_option,
    add_judged_drawing_options,
    add_limit_option,
    add_max_new_tokens_option,
    add_model_option,
    add_picture_options,
    add_seed_option,
    chosen_model,
    positive,
    scale,
)


def add_tasks(tasks) -> None:
    """Add the tasks to those of `seed evaluate`."""
    _add_caption(tasks)
    _add_vqa(tasks)
    _add_draw(tasks)


def _add_caption(tasks) -> None:
    parser = tasks.add_parser(
        "caption",
        help="captions by COCO's metrics and exact names, beside a retrieval captioner and a shuffled control",
        description="Prints the scores and writes caption.json, the predictions and a sheet of 64 pictures to "
        "--output.",
    )
    _add_common(parser, "pictures and captions, see seed.data", batch_size=32)
    add_picture_options(parser)
    _add_decoding(parser)
    parser.add_argument(
        "--references",
        choices=["captions", "names"],
        default="captions",
        help="what COCO's metrics compare with (default: %(default)s)",
    )
    parser.set_defaults(check=check_pictures, run=run_caption)


def _add_vqa(tasks) -> None:
    parser = tasks.add_parser(
        "vqa",
        help="answers to questions by VQA accuracy, beside the majority answer and answers without looking",
        description="Prints accuracies and writes vqa.json and the predictions to --output. --data is a Parquet file, "
        "or a folder of them, with `question`, `answers`, and `image` or `codes` (see seed.data.questions).",
    )
    _add_common(parser, "questions, see seed.data.questions", batch_size=64)
    add_image_root_option(parser)
    _add_decoding(parser)
    parser.set_defaults(check=check_vqa, run=run_vqa)


def _add_draw(tasks) -> None:
    parser = tasks.add_parser(
        "draw",
        help="drawings of names by an independent judge, beside Stable Diffusion's, an oracle and a shuffled control",
        description="Prints similarities and writes draw.json, the predictions and a sheet of 64 drawings to --output.",
    )
    _add_common(parser, "pictures whose names are drawn, see seed.data", batch_size=16)
    add_picture_options(parser)
    parser.add_argument(
        "--also-real", nargs="*", default=[], metavar="SPLIT", help="splits of --data that hold more real pictures"
    )
    add_judged_drawing_options(parser)
    parser.add_argument(
        "--judge-cache", metavar="DIR", help="the folder that keeps the judge's features of real pictures"
    )
    parser.add_argument(
        "--token-guidance-scale",
        type=scale,
        metavar=NUMBER,
        help="the language model's guidance; 1 turns it off (default: the model's setting)",
    )
    parser.add_argument(
        "--temperature",
        type=scale,
        metavar=NUMBER,
        help="sample codes at this temperature; 0 takes the likeliest (default: the model's setting)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar=NUMBER,
        help="sample codes from the likeliest ones that make up this probability (needs a temperature)",
    )
    parser.set_defaults(check=check_draw, run=run_draw)


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    add_max_new_tokens_option(parser)
    parser.add_argument(
        "--num-beams", type=positive, metavar=COUNT, help="beams; 1 is greedy search (default: the model's setting)"
    )
    parser.add_argument(
        "--length-penalty",
        type=float,
        metavar="PENALTY",
        help="score beams by log probability / length ** PENALTY (default: the model's setting)",
    )


def _add_common(parser: argparse.ArgumentParser, data: str, batch_size: int) -> None:
    add_model_option(parser)
    parser.add_argument("--data", required=True, metavar="PATH_OR_ID", help=data)
    parser.add_argument("--split", help="the split of --data")
    parser.add_argument("--train-data", metavar="PATH_OR_ID", help="the training data, for baselines and oracles")
    parser.add_argument("--train-split", metavar="SPLIT", help="the split of --train-data")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder for scores and predictions")
    add_limit_option(parser, "score N pictures or questions")
    add_seed_option(parser, "seed of the choice that --limit makes, of controls and of all noise")
    add_batch_size_option(parser, batch_size)
    add_device_option(parser)


def _check_common(args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 2:
        raise ValueError(f"--limit is {args.limit}; the shuffled control needs at least 2.")
    check_image_root(args.image_root)
    check_output_folder(args.output)
    check_model(args.model)


def check_pictures(args: argparse.Namespace) -> None:
    check_data(args.data, args.format)
    check_data(args.train_data, args.format if args.train_data == args.data else None)
    _check_common(args)


def run_caption(args: argparse.Namespace) -> None:
    from ..evaluation.captioning import evaluate_captions

    evaluate_captions(
        open_pictures(args, args.split),
        args.output,
        _load_writing_model(args),
        train_pictures=open_training_pictures(args),
        references=args.references,
        limit=args.limit,
        batch_size=args.batch_size,
    )


def check_vqa(args: argparse.Namespace) -> None:
    check_exists(args.data, *([args.train_data] if args.train_data else []))
    _check_common(args)


def run_vqa(args: argparse.Namespace) -> None:
    from ..data.questions import QuestionFile
    from ..evaluation.question_answering import evaluate_questions

    evaluate_questions(
        QuestionFile(args.data, args.split, args.image_root),
        args.output,
        _load_writing_model(args),
        train=QuestionFile(args.train_data, args.train_split, words_only=True) if args.train_data else None,
        limit=args.limit,
        batch_size=args.batch_size,
    )


def check_draw(args: argparse.Namespace) -> None:
    check_pictures(args)
    check_model(args.decoder, None if args.judge == DEFAULT_JUDGE else args.judge)


def run_draw(args: argparse.Namespace) -> None:
    from ..evaluation.drawing import evaluate_drawings
    from ..evaluation.judge import load_judge
    from ..evaluation.reconstruction import Drawer

    model = _load_language_model(
        args, token_guidance_scale=args.token_guidance_scale, temperature=args.temperature, top_p=args.top_p
    )
    device = str(chosen_device(args))
    evaluate_drawings(
        open_pictures(args, args.split),
        args.output,
        model,
        Drawer(model.name, args.decoder, args.num_inference_steps, args.guidance_scale, args.seed, device),
        load_judge(args.judge, device),
        train_pictures=open_training_pictures(args),
        further_pictures=[open_pictures(args, split) for split in args.also_real],
        limit=args.limit,
        batch_size=args.batch_size,
        cache=args.judge_cache,
    )


def _load_writing_model(args: argparse.Namespace):
    return _load_language_model(
        args, num_beams=args.num_beams, length_penalty=args.length_penalty, max_new_tokens=args.max_new_tokens
    )


def _load_language_model(args: argparse.Namespace, **options):
    from ..evaluation.language_model import EvaluatedLanguageModel

    return EvaluatedLanguageModel(chosen_model(args), str(chosen_device(args)), seed=args.seed, **options)
