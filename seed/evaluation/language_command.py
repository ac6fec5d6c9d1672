"""The tasks `caption`, `vqa` and `draw` of `seed evaluate`."""

import argparse

from ..command_line import (
    add_image_root_option,
    add_judged_drawing_options,
    add_max_new_tokens_option,
    add_picture_options,
    noise_seed,
    positive,
    scale,
)
from .decoding import LENGTH_PENALTY, MAX_ANSWER_TOKENS, MAX_CAPTION_TOKENS, NUM_BEAMS


def add_language_tasks(tasks) -> None:
    """Adds them to the tasks of `seed evaluate`."""
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
    _add_decoding(parser, MAX_CAPTION_TOKENS)
    parser.add_argument(
        "--references", choices=["captions", "names"], default="captions", help="what COCO's metrics compare with"
    )
    parser.set_defaults(func=run_caption)


def _add_vqa(tasks) -> None:
    parser = tasks.add_parser(
        "vqa",
        help="answers to questions by VQA accuracy, beside the majority answer and answers without looking",
        description="Prints accuracies and writes vqa.json and the predictions to --output. --data is a Parquet file, "
        "or a folder of them, with `question`, `answers`, and `image` or `codes`.",
    )
    _add_common(parser, "questions, see seed.data.questions", batch_size=64)
    add_image_root_option(parser)
    _add_decoding(parser, MAX_ANSWER_TOKENS)
    parser.set_defaults(func=run_vqa)


def _add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    add_max_new_tokens_option(parser, max_new_tokens)
    parser.add_argument("--num-beams", type=positive, default=NUM_BEAMS, help="1 is greedy (default: %(default)s)")
    parser.add_argument(
        "--length-penalty",
        type=float,
        default=LENGTH_PENALTY,
        help="beams are scored by log probability / length ** PENALTY (default: %(default)s, the likeliest as a whole)",
    )


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
    parser.add_argument("--judge-cache", metavar="DIR", help="keep the judge's features of real pictures there")
    parser.add_argument(
        "--token-guidance-scale", type=scale, help="guidance on tokens, 1 is off (default: the model's setting)"
    )
    parser.add_argument(
        "--temperature", type=scale, help="sample codes; 0 takes the likeliest (default: the model's setting)"
    )
    parser.add_argument("--top-p", type=float, help="sample codes from the likeliest only (needs a temperature)")
    parser.set_defaults(func=run_draw)


def _add_common(parser: argparse.ArgumentParser, data: str, batch_size: int) -> None:
    parser.add_argument("--model", help="folder or Hub id of a SEED repository (default: seed-tiny)")
    parser.add_argument("--data", required=True, metavar="PATH_OR_ID", help=data)
    parser.add_argument("--split", help="of --data")
    parser.add_argument("--train-data", metavar="PATH_OR_ID", help="what was trained on, for baselines and oracles")
    parser.add_argument("--train-split", metavar="SPLIT", help="of --train-data")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for metrics and predictions")
    parser.add_argument("--limit", type=positive, help="take so many, chosen at random (default: all)")
    parser.add_argument("--seed", type=noise_seed, default=0, help="of --limit's choice, of controls and of all noise")
    parser.add_argument("--batch-size", type=positive, default=batch_size)
    parser.add_argument("--device", help="default: the GPU if there is one")


def run_caption(args: argparse.Namespace) -> int:
    from .captioning import evaluate_captions
    from .command import picture_set, training_pictures

    evaluate_captions(
        picture_set(args, args.split),
        args.output,
        _writing_model(args),
        train_pictures=training_pictures(args),
        references=args.references,
        limit=args.limit,
        batch_size=args.batch_size,
    )
    return 0


def run_vqa(args: argparse.Namespace) -> int:
    from ..data.questions import QuestionFile
    from .question_answering import evaluate_questions

    evaluate_questions(
        QuestionFile(args.data, args.split, args.image_root),
        args.output,
        _writing_model(args),
        train=QuestionFile(args.train_data, args.train_split, words_only=True) if args.train_data else None,
        limit=args.limit,
        batch_size=args.batch_size,
    )
    return 0


def run_draw(args: argparse.Namespace) -> int:
    from .command import default_device, picture_set, training_pictures
    from .drawing import evaluate_drawings
    from .judge import load_judge
    from .reconstruction import Drawer

    model = _language_model(
        args, token_guidance_scale=args.token_guidance_scale, temperature=args.temperature, top_p=args.top_p
    )
    device = default_device(args)
    evaluate_drawings(
        picture_set(args, args.split),
        args.output,
        model,
        Drawer(model.name, args.decoder, args.num_inference_steps, args.guidance_scale, args.seed, device),
        load_judge(args.judge, device),
        train_pictures=training_pictures(args),
        further_pictures=[picture_set(args, split) for split in args.also_real],
        limit=args.limit,
        batch_size=args.batch_size,
        cache=args.judge_cache,
    )
    return 0


def _writing_model(args: argparse.Namespace):
    return _language_model(
        args, num_beams=args.num_beams, length_penalty=args.length_penalty, max_new_tokens=args.max_new_tokens
    )


def _language_model(args: argparse.Namespace, **options):
    from .command import default_device, model_name
    from .language_model import EvaluatedLanguageModel

    if args.limit is not None and args.limit < 2:
        raise ValueError(f"--limit is {args.limit}; the shuffled control needs at least 2.")
    return EvaluatedLanguageModel(model_name(args), default_device(args), seed=args.seed, **options)


__all__ = ["add_language_tasks", "run_caption", "run_draw", "run_vqa"]
