"""What `seed demo` does: pictures to codes, codes to words and to drawings, words to drawings, all on one sheet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from .data.images import load_image
from .data.tokenization import load_image_tokenizer
from .evaluation.image_tokenizer import EvaluatedTokenizer
from .evaluation.language_model import EvaluatedLanguageModel
from .evaluation.sheets import fit, plain_letters
from .language_tasks import draw_prompts
from .pipeline_seed import SeedPipeline
from .repository_seed import SeedRepository

# In the image tokenizer's folder: what its nearest captions are chosen from, one per line, UTF-8.
CAPTIONS_FILE = "captions.txt"
NEAREST = 3
QUESTION = "which kind of thing is it?"  # of those that seed-tiny was trained on; any other model may be asked it too
PROMPTS = ("red apple", "blue book", "cat face", "house", "sun", "fish", "bus")  # as many as a row of the sheet takes
CELL, MARGIN, LINE = 128, 8, 18


@dataclass
class DemoRow:
    """
    Args:
        name: of the picture.
        image: the original.
        codes: `(num_codes,)`.
        captions: the nearest ones and their cosine, best first; empty if the model has no text branch or no captions.
        drawings: one per prefix length.
        caption, answer: the language model's, to the paper's prompt and to QUESTION; None without a language model.
    """

    name: str
    image: Image.Image
    codes: torch.LongTensor
    captions: list[tuple[str, float]]
    drawings: list[Image.Image]
    caption: str | None = None
    answer: str | None = None


def shipped_pictures() -> list[Path]:
    """The pictures that come with the package; `ATTRIBUTION.tsv` beside them names authors and licences."""
    folder = Path(str(resources.files(__package__))) / "assets" / "demo"
    lines = (folder / "ATTRIBUTION.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [folder / line.split("\t")[0] for line in lines]


def prefix_lengths(num_codes: int) -> list[int]:
    """1, 2, 4, ... and all of them."""
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
) -> tuple[list[DemoRow], list[Image.Image]]:
    """
    Tokenises pictures, finds their nearest captions, and draws them from ever more of their codes. A language model, if
    the repository has one, captions them, answers a question about each, and draws PROMPTS.

    Args:
        model: a SEED repository.
        paths: the pictures.
        seed: picture i is drawn from one noise, of seed `seed + i`, for every prefix, so that only the codes differ.
        batch_size: drawings at a time.

    Returns:
        A row per picture, and the drawings of PROMPTS (none without a language model).
    """
    log(f"Loading {model}")
    tokenizer, image_tokenizer, image_processor, captions = _load(model, dtype, device)
    language_model = (
        EvaluatedLanguageModel(model, device, dtype=dtype) if SeedRepository(model).has_language_model() else None
    )
    parts = {"language_model": language_model.model, "processor": language_model.processor} if language_model else {}
    pipeline = SeedPipeline.from_pretrained(model, image_tokenizer=image_tokenizer, dtype=dtype, **parts).to(device)
    pipeline.image_processor = image_processor

    log(f"Tokenising {len(paths)} pictures")
    images = [load_image(path) for path in paths]
    codes = torch.cat([pipeline.tokenize_images([image]) for image in images])
    nearest = _nearest_captions(tokenizer, codes, captions) if captions else [[] for _ in images]
    written, answers, drawn_prompts = [None] * len(images), [None] * len(images), []
    if language_model:
        log("Captioning, answering, and drawing from words")
        written = language_model.caption(codes)
        answers = language_model.answer(codes, [QUESTION] * len(images))
        drawn_prompts = draw_prompts(pipeline, PROMPTS, seed=seed)

    lengths = prefix_lengths(codes.shape[1])
    log(f"Drawing {len(images) * len(lengths)} pictures in {pipeline.config.num_inference_steps} steps")
    drawings = _draw(pipeline, codes, lengths, seed, batch_size)
    columns = zip(paths, images, codes.cpu(), nearest, drawings, written, answers, strict=True)
    return [DemoRow(path.stem, *rest) for path, *rest in columns], drawn_prompts


def contact_sheet(rows: Sequence[DemoRow], drawn_prompts: Sequence[Image.Image] = ()) -> Image.Image:
    """
    One row per picture: the original over its caption (the language model's, else the nearest), then the drawings,
    headed by the number of codes. Then drawings of PROMPTS, over their words.
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


def _load(model, dtype, device):
    """Tokenizer with its text side, or None; the image tokenizer; its processor; the captions to choose from."""
    file = SeedRepository(model).image_tokenizer_folder() / CAPTIONS_FILE
    if not file.exists():
        return None, *load_image_tokenizer(model, dtype, device), []
    tokenizer = EvaluatedTokenizer(model, device)
    captions = list(dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines()))
    return tokenizer, tokenizer.model.to(dtype), tokenizer.image_processor, [line for line in captions if line]


def _nearest_captions(
    tokenizer: EvaluatedTokenizer, codes: torch.LongTensor, captions: list[str]
) -> list[list[tuple[str, float]]]:
    """By the dual stream's cosine, from the codes alone (through the reconstruction decoder)."""
    with torch.no_grad():
        features = tokenizer.model.get_image_features(codes=codes).cpu()
    scores, chosen = (features @ tokenizer.encode_texts(captions).T).topk(min(NEAREST, len(captions)))
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


__all__ = ["DemoRow", "contact_sheet", "prefix_lengths", "run_demo", "shipped_pictures"]
