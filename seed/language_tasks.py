"""What `seed caption`, `seed ask` and `seed draw` do, and the words and drawings of the demo."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from .data.images import load_image
from .evaluation.language_model import EvaluatedLanguageModel
from .pipeline_seed import SeedPipeline

# Bounds the memory of any number of pictures: each is some forty tokens in a cache of keys and values.
PICTURES_PER_BATCH = 32


def caption_pictures(language_model: EvaluatedLanguageModel, paths: Sequence[str | Path]) -> list[str]:
    """One caption per picture, by the paper's prompt."""
    captions = []
    for start in range(0, len(paths), PICTURES_PER_BATCH):
        images = [load_image(Path(path)) for path in paths[start : start + PICTURES_PER_BATCH]]
        captions += language_model.caption(language_model.processor.tokenize_images(images))
    return captions


def answer_question(language_model: EvaluatedLanguageModel, path: str | Path, question: str) -> str:
    """
    The answer to a question about a picture, by the paper's prompt.

    Raises:
        ValueError: an empty question.
    """
    codes = language_model.processor.tokenize_images([load_image(Path(path))])
    return language_model.answer(codes, [question])[0]


def draw_prompts(
    pipeline: SeedPipeline, prompts: Sequence[str], count: int = 1, seed: int = 0, **settings
) -> list[Image.Image]:
    """
    `count` drawings of each prompt, in order.

    Args:
        pipeline: with a language model.
        seed: drawing k of any prompt starts from seed + k, so more of them do not change the first.
        settings: further arguments of the pipeline.
    """
    generators = [torch.Generator().manual_seed(seed + k) for _ in prompts for k in range(count)]
    return pipeline(prompt=list(prompts), num_images_per_prompt=count, generator=generators, **settings).images


def tile(images: Sequence[Image.Image], margin: int = 4) -> Image.Image:
    """Images of one size side by side, in rows that make about a square."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + margin) - margin, rows * (height + margin) - margin), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image, (column * (width + margin), row * (height + margin)))
    return sheet


__all__ = ["answer_question", "caption_pictures", "draw_prompts", "tile"]
