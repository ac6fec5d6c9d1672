"""The `seed` command: every verb is a call into the rooms of the package, which are imported when it runs."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import __version__, default_model
from .command_line import (
    add_decoder_option,
    add_max_new_tokens_option,
    choose_device,
    noise_seed,
    positive,
    scale,
)
from .evaluation.decoding import MAX_ANSWER_TOKENS, MAX_CAPTION_TOKENS
from .hardware import keep_freed_memory

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command line.

    Returns:
        0 if all went well; 2 if what the user gave cannot be used (one line on stderr says why; `--debug` raises it);
        130 if it was interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    args = _parser(with_converters=argv[:1] == ["convert"]).parse_args(argv)
    if not debug:
        _quiet()
    keep_freed_memory()
    from huggingface_hub.errors import StrictDataclassError  # a value in a config.json of the wrong kind

    try:
        return args.func(args) or 0
    except (ValueError, OSError, ModuleNotFoundError, StrictDataclassError) as error:
        if debug:
            raise
        print(f"seed: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("seed: interrupted", file=sys.stderr)
        return 130


def _parser(with_converters: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seed", description="SEED: images as 32 discrete, causally ordered codes, and drawings from codes."
    )
    parser.add_argument("--version", action="version", version=f"seed {__version__}")
    parser.add_argument("--debug", action="store_true", help="show warnings, and the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_demo(verbs)
    _add_tokenize(verbs)
    _add_detokenize(verbs)
    _add_reconstruct(verbs)
    _add_caption(verbs)
    _add_ask(verbs)
    _add_draw(verbs)
    from .evaluation.command import register as add_evaluate

    add_evaluate(verbs)
    convert = verbs.add_parser("convert", help="convert released checkpoints")
    if with_converters:  # their modules import torch
        from .conversion import blip2, seed1

        formats = convert.add_subparsers(dest="format", required=True, metavar="FORMAT")
        seed1.register(formats)
        blip2.register(formats)
    return parser


def _add_demo(verbs) -> None:
    parser = verbs.add_parser(
        "demo",
        help="turn pictures into codes and draw them again, on one sheet",
        description="Prints the codes and nearest captions of your pictures and of a few that come with the package, "
        "and draws each from its first 1, 2, 4, ... and all codes on one contact sheet. The language model, if any, "
        "captions them, answers a question about each, and draws some words.",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="your pictures")
    parser.add_argument("--output", default="seed_demo.png", help="the contact sheet (default: %(default)s)")
    parser.add_argument("--seed", type=noise_seed, default=0, help="of the noise that drawings start from")
    _add_model_options(parser, batch_size=48)
    parser.set_defaults(func=run_demo)


def _add_tokenize(verbs) -> None:
    parser = verbs.add_parser(
        "tokenize",
        help="pictures to a Parquet file of codes",
        description="Writes `id` and `codes` (and `captions`, of image-text data) of every picture. Pictures that "
        "cannot be opened are listed beside FILE, of codes.parquet in codes.skipped.jsonl; the exit code is 0 all the "
        "same. If the run is killed, the same command goes on where it stopped.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="pictures and folders of pictures, or image-text data (.parquet, .tar, .json, .tsv, .csv)",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the Parquet file to write")
    parser.add_argument("--image-root", metavar="DIR", help="folder of the pictures that image-text data name")
    parser.add_argument("--split", help="of image-text data that hold several")
    _add_model_options(parser, batch_size=32)
    parser.set_defaults(func=run_tokenize)


def _add_detokenize(verbs) -> None:
    parser = verbs.add_parser("detokenize", help="a Parquet file of codes to drawings")
    parser.add_argument("codes", metavar="FILE", help="as `seed tokenize` writes it")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the drawings")
    parser.add_argument("--seed", type=noise_seed, default=0, help="row r is drawn from noise of seed SEED + r")
    parser.add_argument("--force", action="store_true", help="draw codes that another image tokenizer made")
    _add_model_options(parser, batch_size=16)
    add_decoder_option(parser)
    parser.set_defaults(func=run_detokenize)


def _add_reconstruct(verbs) -> None:
    parser = verbs.add_parser("reconstruct", help="one picture, drawn again from its codes")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--output", required=True, metavar="FILE", help="the drawing")
    parser.add_argument("--prefix-length", type=int, metavar="K", help="draw from the first K codes (default: all)")
    parser.add_argument("--seed", type=noise_seed, default=0, help="of the noise that the drawing starts from")
    _add_model_options(parser)
    add_decoder_option(parser)
    parser.set_defaults(func=run_reconstruct)


def _add_caption(verbs) -> None:
    parser = verbs.add_parser("caption", help="words for pictures")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    add_max_new_tokens_option(parser, MAX_CAPTION_TOKENS)
    _add_model_options(parser)
    parser.set_defaults(func=run_caption)


def _add_ask(verbs) -> None:
    parser = verbs.add_parser("ask", help="a short answer to a question about a picture")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("question", metavar="QUESTION")
    add_max_new_tokens_option(parser, MAX_ANSWER_TOKENS)
    _add_model_options(parser)
    parser.set_defaults(func=run_ask)


def _add_draw(verbs) -> None:
    parser = verbs.add_parser("draw", help="drawings of what words say")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--count", type=positive, default=1, help="drawings, side by side on one sheet")
    parser.add_argument("--seed", type=noise_seed, default=0, help="drawing k starts from SEED + k")
    parser.add_argument("--output", required=True, metavar="FILE", help="the picture to write")
    parser.add_argument("--guidance-scale", type=scale, help="of the diffusion (default: the model's setting)")
    parser.add_argument("--token-guidance-scale", type=scale, help="of the language model (likewise)")
    parser.add_argument(
        "--token-temperature", type=scale, help="at which codes are sampled; 0: the likeliest (likewise)"
    )
    parser.add_argument("--num-inference-steps", type=positive, help="of the diffusion (likewise)")
    _add_model_options(parser)
    add_decoder_option(parser)
    parser.set_defaults(func=run_draw)


def _add_model_options(parser: argparse.ArgumentParser, batch_size: int | None = None) -> None:
    parser.add_argument("--model", help="folder or Hub id of a SEED repository (default: seed-tiny)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of all arithmetic (default: %(default)s)")
    parser.add_argument("--device", help="default: the GPU if there is one")
    if batch_size:
        parser.add_argument("--batch-size", type=positive, default=batch_size, help="default: %(default)s")


def run_demo(args: argparse.Namespace) -> int:
    started = time.monotonic()
    print("Importing torch, transformers and diffusers", flush=True)
    from .data.detokenization import check_image_path, save_image
    from .data.images import list_images, load_image
    from .demo import QUESTION, contact_sheet, run_demo, shipped_pictures

    check_image_path(args.output)
    own = list_images(args.images) if args.images else []
    for path in own:
        load_image(path)  # before anything is loaded
    rows, drawn_prompts = run_demo(
        args.model or default_model(),
        [*own, *shipped_pictures()],
        seed=args.seed,
        batch_size=args.batch_size,
        dtype=_dtype(args),
        device=_device(args),
        log=lambda line: print(line, flush=True),
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
    print(f"\nWrote {args.output} in {time.monotonic() - started:.0f} s: each picture, and what its first codes draw.")
    return 0


def run_tokenize(args: argparse.Namespace) -> int:
    from .data.tokenization import PictureList, load_image_tokenizer, tokenize_pictures

    pictures = PictureList(args.paths, args.image_root, args.split)
    if pictures.not_downloaded:
        print(f"{pictures.not_downloaded} pictures that the table names were never downloaded and are left out.")
    model, image_processor = load_image_tokenizer(args.model or default_model(), _dtype(args), _device(args))
    summary = tokenize_pictures(pictures, args.output, model, image_processor, args.batch_size)
    for _, name, error in summary.skipped:
        print(f"seed: skipped {error if name in error else f'{name}: {error}'}", file=sys.stderr)
    if summary.continued_from:
        print(f"Continued an earlier run that had done {summary.continued_from} of {len(pictures)} pictures.")
    print(f"Wrote {args.output}: the codes of {summary.tokenized} of {len(pictures)} pictures.")
    if summary.skipped:
        print(f"{len(summary.skipped)} could not be opened; they are listed in {summary.skipped_file}.")
    return 0


def run_detokenize(args: argparse.Namespace) -> int:
    from .data.detokenization import draw_codes, open_codes

    pipeline = _pipeline(args)
    codes = open_codes(args.codes, pipeline, any_tokenizer=args.force)
    pipeline.set_progress_bar_config(disable=True)  # one bar over pictures is enough
    paths = draw_codes(pipeline, codes, args.output, args.seed, args.batch_size)
    print(f"Wrote {len(paths)} drawings to {args.output}.")
    return 0


def run_reconstruct(args: argparse.Namespace) -> int:
    import torch

    from .data.detokenization import check_image_path, save_image
    from .data.images import load_image

    check_image_path(args.output)
    image = load_image(Path(args.image))
    generator = torch.Generator().manual_seed(args.seed)
    drawn = _pipeline(args)(images=image, prefix_length=args.prefix_length, generator=generator)
    save_image(drawn.images[0], args.output)
    print(f"codes {' '.join(map(str, drawn.codes[0].tolist()))}")
    print(f"Wrote {args.output}.")
    return 0


def run_caption(args: argparse.Namespace) -> int:
    from .data.images import InvalidImageError, load_image
    from .language_tasks import caption_pictures

    usable, broken = [], 0
    for path in args.images:  # before the model is loaded, and all of them, so that they can be put right at once
        try:
            load_image(Path(path))
            usable.append(path)
        except InvalidImageError as error:
            print(f"seed: error: {error}", file=sys.stderr)
            broken = 2
    if usable:
        for image, caption in zip(usable, caption_pictures(_language_model(args), usable)):
            print(f"{image}: {caption}")
    return broken


def run_ask(args: argparse.Namespace) -> int:
    from .data.images import load_image
    from .language_tasks import answer_question

    _require_words("question", args.question)
    load_image(Path(args.image))  # before the model is loaded
    print(answer_question(_language_model(args), args.image, args.question))
    return 0


def run_draw(args: argparse.Namespace) -> int:
    from .data.detokenization import check_image_path, save_image
    from .language_tasks import draw_prompts, tile

    _require_words("prompt", args.prompt)
    check_image_path(args.output)
    settings = ("guidance_scale", "token_guidance_scale", "token_temperature", "num_inference_steps")
    chosen = {name: getattr(args, name) for name in settings if getattr(args, name) is not None}
    drawings = draw_prompts(_pipeline(args, language_model=True), [args.prompt], args.count, args.seed, **chosen)
    save_image(tile(drawings), args.output)
    print(f"Wrote {args.output}: {args.prompt}.")
    return 0


def _require_words(name: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"The {name} is {text!r}; expected words.")


def _language_model(args: argparse.Namespace):
    from .evaluation.language_model import EvaluatedLanguageModel

    name = args.model or default_model()
    return EvaluatedLanguageModel(name, _device(args), dtype=_dtype(args), max_new_tokens=args.max_new_tokens)


def _pipeline(args: argparse.Namespace, **options):
    from .pipeline_seed import SeedPipeline

    name = args.model or default_model()
    pipeline = SeedPipeline.from_pretrained(name, decoder=args.decoder, dtype=_dtype(args), **options)
    return pipeline.to(_device(args))


def _dtype(args: argparse.Namespace):
    import torch

    return getattr(torch, args.dtype)


def _device(args: argparse.Namespace):
    return choose_device(args.device)


def _quiet() -> None:
    """Only errors from the libraries, which read this when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
