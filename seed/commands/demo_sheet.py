"""The contents of `seed demo`: pictures, their words, drawings from more and more codes, and drawings from words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from ..data.images import load_image
from ..data.sheets import fit, plain_letters
from ..data.texts import encode_texts, load_text_tokenizer
from ..data.tokenization import load_image_tokenizer
from ..generation_seed import write_answers, write_captions
from ..image_processing_seed import SeedImageProcessorPil
from ..modeling_seed import SeedModel
from ..pipeline_seed import SeedPipeline
from ..repository_seed import CAPTIONS_FILE, SeedRepository
from .draw import draw_prompts
from .loading import load_language_pair

NEAREST = 3
QUESTION = "which kind of thing is it?"  # seed-tiny was trained on it; other models can also answer it
PROMPTS = ("red apple", "blue book", "cat face", "house", "sun", "fish", "bus")  # as many as a row of the sheet holds
CELL, MARGIN, LINE = 128, 8, 18


@dataclass
class DemoRow:
    """
    One picture of the demo.

    Args:
        name: the name of the picture.
        image: the original picture.
        codes: its codes, `(num_codes,)`.
        captions: the nearest captions and their cosines, best first; empty if the image tokenizer has no captions.
        drawings: one drawing per prefix length.
        caption, answer: what the language model writes for the paper's prompt and for QUESTION; None without one.
    """

    name: str
    image: Image.Image
    codes: torch.LongTensor
    captions: list[tuple[str, float]]
    drawings: list[Image.Image]
    caption: str | None = None
    answer: str | None = None


def prefix_lengths(num_codes: int) -> list[int]:
    """Return the numbers of codes that are drawn: 1, 2, 4, ... and all."""
    powers = [2**power for power in range(num_codes.bit_length())]
    return [length for length in powers if length < num_codes] + [num_codes]


def run_demo(
    model: str | Path,
    paths: Sequence[Path],
    seed: int = 0,
    batch_size: int = 48,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    log: Callable[[str], None] = print,
    progress: bool = False,
) -> tuple[list[DemoRow], list[Image.Image]]:
    """
    Tokenise pictures, find their nearest captions, and draw them from more and more of their codes.

    If the repository has a language model, it captions them, answers a question about each, and draws PROMPTS.

    Args:
        model: folder or Hub id of a SEED repository.
        paths: the pictures.
        seed: picture i is drawn from noise of seed `seed + i` for every prefix, so that only the codes differ.
        batch_size: how many pictures are drawn at a time.
        log: a function that is called with one line of text before each step.
        progress: show a bar of the diffusion steps for every batch.

    Returns:
        One row per picture, and the drawings of PROMPTS (none without a language model).
    """
    log(f"Loading {model}")
    captions = _captions_of(model)
    text_tokenizer = None
    if captions:  # finding the nearest captions needs the text branch
        folder = SeedRepository(model).image_tokenizer_folder()
        image_tokenizer = SeedModel.from_pretrained(folder, dtype=torch.float32).eval().to(device, dtype)
        image_processor = SeedImageProcessorPil.from_pretrained(folder)
        text_tokenizer = load_text_tokenizer(folder, image_tokenizer.config)
    else:
        image_tokenizer, image_processor = load_image_tokenizer(model, dtype, device)
    parts = {}
    if SeedRepository(model).has_language_model():
        parts["language_model"], parts["processor"] = load_language_pair(model, device, dtype)
    pipeline = SeedPipeline.from_pretrained(model, image_tokenizer=image_tokenizer, dtype=dtype, **parts).to(device)
    pipeline.image_processor = image_processor
    pipeline.set_progress_bar_config(disable=not progress)

    log(f"Tokenising {len(paths)} pictures")
    images = [load_image(path) for path in paths]
    codes = pipeline.tokenize_images(images)
    nearest = [[] for _ in images]
    if captions:
        nearest = _nearest_captions(image_tokenizer, text_tokenizer, codes, captions)
    written, answers, drawn_prompts = [None] * len(images), [None] * len(images), []
    if parts:
        log("Captioning, answering, and drawing from words")
        pair = parts["language_model"], parts["processor"]
        written = write_captions(*pair, codes=codes)
        answers = write_answers(*pair, [QUESTION] * len(images), codes=codes)
        drawn_prompts = draw_prompts(pipeline, PROMPTS, seed=seed)

    lengths = prefix_lengths(codes.shape[1])
    log(f"Drawing {len(images) * len(lengths)} pictures in {pipeline.config.num_inference_steps} steps")
    drawings = _draw(pipeline, codes, lengths, seed, batch_size)
    columns = zip(paths, images, codes.cpu(), nearest, drawings, written, answers, strict=True)
    return [DemoRow(path.stem, *rest) for path, *rest in columns], drawn_prompts


def contact_sheet(rows: Sequence[DemoRow], drawn_prompts: Sequence[Image.Image] = ()) -> Image.Image:
    """
    Draw one row per picture: the original and its drawings, and below them the drawings of PROMPTS.

    The caption stands below the original (the language model's, else the nearest). The number of codes stands above the
    drawings.
    """
    lengths = prefix_lengths(len(rows[0].codes))
    font = ImageFont.load_default(size=13)
    step_x, step_y = CELL + MARGIN, CELL + LINE + MARGIN
    height = MARGIN + LINE + len(rows) * step_y + (LINE + step_y if drawn_prompts else 0)
    sheet = Image.new("RGB", (MARGIN + (1 + len(lengths)) * step_x, height), "white")
    draw = ImageDraw.Draw(sheet)
    headers = ["original", *(f"{length} code{'s' if length > 1 else ''}" for length in lengths)]
    for column, header in enumerate(headers):
        _centre(draw, header, MARGIN + column * step_x, MARGIN // 2, font, "black")
    for number, row in enumerate(rows):
        top = MARGIN + LINE + number * step_y
        for column, image in enumerate([row.image, *row.drawings]):
            left = MARGIN + column * step_x
            picture = fit(image, CELL)
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        nearest = row.captions[0][0] if row.captions else None
        words = row.caption or nearest
        _centre(draw, f"“{words}”" if words else row.name, MARGIN, top + CELL, font, "#555555")
    if drawn_prompts:
        top = MARGIN + LINE + len(rows) * step_y
        draw.text((MARGIN, top), "drawn from words", fill="black", font=font)
        for column, (prompt, image) in enumerate(zip(PROMPTS, drawn_prompts)):
            left = MARGIN + column * step_x
            sheet.paste(fit(image, CELL), (left, top + LINE))
            _centre(draw, prompt, left, top + LINE + CELL, font, "#555555")
    return sheet


def _captions_of(model: str | Path) -> list[str]:
    """Return the image tokenizer's list of captions, without repeats, from which the nearest ones are chosen."""
    file = SeedRepository(model).image_tokenizer_folder() / CAPTIONS_FILE
    if not file.exists():
        return []
    captions = dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [caption for caption in captions if caption]


def _nearest_captions(
    model: SeedModel, text_tokenizer, codes: torch.LongTensor, captions: list[str]
) -> list[list[tuple[str, float]]]:
    """Return each picture's nearest captions by cosine, from its codes alone (through the reconstruction decoder)."""
    with torch.no_grad():
        features = model.get_image_features(codes=codes).cpu()
    texts = encode_texts(model, text_tokenizer, captions)
    scores, chosen = (features @ texts.T).topk(min(NEAREST, len(captions)))
    return [
        [(captions[number], score) for number, score in zip(numbers, values, strict=True)]
        for numbers, values in zip(chosen.tolist(), scores.tolist(), strict=True)
    ]


def _draw(
    pipeline: SeedPipeline, codes: torch.LongTensor, lengths: list[int], seed: int, batch_size: int
) -> list[list[Image.Image]]:
    jobs = [(picture, length) for picture in range(len(codes)) for length in lengths]
    drawn = []
    for start in range(0, len(jobs), batch_size):
        chunk = jobs[start : start + batch_size]
        output = pipeline(
            codes=codes[[picture for picture, _ in chunk]],
            prefix_length=[length for _, length in chunk],
            generator=[torch.Generator().manual_seed(seed + picture) for picture, _ in chunk],
        )
        drawn += output.images
    return [drawn[start : start + len(lengths)] for start in range(0, len(drawn), len(lengths))]


def _centre(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, font, fill: str) -> None:
    text = plain_letters(text)
    while draw.textlength(text, font) > CELL and len(text) > 4:
        text = text.rstrip("…”")[:-1].rstrip() + "…"
    draw.text((left + (CELL - draw.textlength(text, font)) / 2, top), text, fill=fill, font=font)


__all__ = ["PROMPTS", "QUESTION", "DemoRow", "contact_sheet", "run_demo", "prefix_lengths"]
