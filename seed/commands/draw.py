"""`seed draw`: draw what words say."""

import argparse
from collections.abc import Sequence

from .checks import check_model, check_output_picture, check_words
from .loading import load_pipeline
from .options import (
    COUNT,
    NUMBER,
    add_decoder_option,
    add_diffusion_options,
    add_model_options,
    add_seed_option,
    positive,
    scale,
)


def add_parser(verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "draw",
        help="draw what words say",
        description="Lets the language model write codes for some words, draws them, and writes the picture to FILE.",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the words, in quotation marks")
    parser.add_argument(
        "--count", type=positive, default=1, metavar=COUNT, help="make N drawings, side by side (default: 1)"
    )
    add_seed_option(parser, "drawing k starts from noise of seed N + k")
    parser.add_argument("--output", required=True, metavar="FILE", help="the picture to write")
    add_diffusion_options(parser)
    parser.add_argument(
        "--token-guidance-scale",
        type=scale,
        metavar=NUMBER,
        help="the language model's guidance; 1 turns it off (default: the model's setting)",
    )
    parser.add_argument(
        "--token-temperature",
        type=scale,
        metavar=NUMBER,
        help="sample codes at this temperature; 0 takes the likeliest (default: the model's setting)",
    )
    add_model_options(parser)
    add_decoder_option(parser)
    parser.set_defaults(check=check, run=run)


def check(args: argparse.Namespace) -> None:
    check_words("prompt", args.prompt)
    check_output_picture(args.output)
    check_model(args.model, args.decoder)


def run(args: argparse.Namespace) -> None:
    from ..data.images import save_image
    from ..data.sheets import tile

    settings = ("guidance_scale", "token_guidance_scale", "token_temperature", "num_inference_steps")
    chosen = {name: getattr(args, name) for name in settings if getattr(args, name) is not None}
    drawings = draw_prompts(load_pipeline(args, language_model=True), [args.prompt], args.count, args.seed, **chosen)
    save_image(tile(drawings), args.output)
    print(f"Wrote {args.output}: {args.prompt}.")


def draw_prompts(pipeline, prompts: Sequence[str], count: int = 1, seed: int = 0, **settings) -> list:
    """
    Draw each prompt `count` times.

    Args:
        pipeline: a [`SeedPipeline`] with a language model.
        seed: drawing k of any prompt starts from noise of seed `seed + k`, so that a larger `count` leaves the first
            drawings as they are.
        settings: further arguments of the pipeline.

    Returns:
        PIL images: all drawings of the first prompt, then all of the second, and so on.
    """
    import torch

    generators = [torch.Generator().manual_seed(seed + k) for _ in prompts for k in range(count)]
    return pipeline(prompt=list(prompts), num_images_per_prompt=count, generator=generators, **settings).images
