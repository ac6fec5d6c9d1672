"""Fine-tune a SEED language model on a few pictures of your own, and compare what it says and draws before and after.

    python examples/finetune_lora.py --data my_pictures --output runs/mine

`my_pictures` holds pictures with a .txt file of captions beside each; any other image-text data that `seed tokenize`
reads will do. Twenty pictures are enough to teach seed-tiny new words for what they show, but not new colours, which
its codes hardly keep. This takes a few minutes on two cores. The model learns several augmented views of each picture.

The output folder is a SEED repository (`seed caption IMAGE --model runs/mine`). It points to the image tokenizer and
the decoder of --model by relative paths. `adapter/` holds only the weights that were trained, and before_after.png
shows what changed. This writes a repository that holds copies of everything and can be moved:

    SeedProcessor.from_pretrained("runs/mine").save_pretrained("shared", whole=True)
"""

import random
from pathlib import Path

import torch
from arguments import add_data_options, make_parser
from PIL import Image, ImageDraw, ImageFont
from transformers import set_seed

from seed import SeedPipeline, default_model, write_captions
from seed.data.augmentation import augment
from seed.data.codes import CodesMetadata
from seed.data.image_text import SkipReport, iter_valid, load_image_text
from seed.data.sheets import plain_letters
from seed.data.tokenization import load_image_tokenizer
from seed.modeling_seed_language import load_language_model
from seed.training.language_examples import LanguageFile, load_language_recipe, write_views
from seed.training.language_stage import check_output, run_language_stage, save_language_model
from seed.training.lora import open_language_model
from seed.training.runs import require_one_process

SHOWN = 6  # pictures on the sheet
# Pixels: the side of a picture, the height of a line of text, and the space between them.
CELL, LINE, MARGIN = 128, 18, 8


def main() -> None:
    parser = make_parser(__doc__)
    add_data_options(parser, "folder of pictures and captions, or other image-text data")
    parser.add_argument("--output", required=True, type=Path, help="folder for the fine-tuned repository")
    parser.add_argument("--model", default=default_model(), help="SEED repository (default: seed-tiny)")
    recipe_file = Path(__file__).parent / "recipes" / "finetune" / "tiny.yaml"
    parser.add_argument("--recipe", default=recipe_file, type=Path, help="YAML file (default: seed-tiny's)")
    parser.add_argument("--views", type=int, default=8, help="views of each picture, the picture itself included")
    arguments = parser.parse_args()
    check_output(arguments.output, arguments.model)
    require_one_process()

    report = SkipReport()
    data = load_image_text(arguments.data, split=arguments.split, image_root=arguments.image_root)
    examples = list(iter_valid(data, report))
    print(report.summary())
    if not examples:
        raise ValueError(f"{arguments.data} has no picture with a caption.")
    images, captions = ([example[name] for example in examples] for name in ("image", "captions"))

    recipe = load_language_recipe(arguments.recipe)
    image_tokenizer, image_processor = load_image_tokenizer(arguments.model)
    codes = tokenize_views(images, arguments.views, image_tokenizer, image_processor)
    metadata = CodesMetadata.of(image_tokenizer, image_processor)
    write_views(arguments.output / "codes.parquet", codes, captions, metadata)
    file = LanguageFile(
        arguments.output / "codes.parquet", metadata.image_tokenizer, metadata.codebook_size, metadata.num_codes
    )
    set_seed(recipe.training.get("seed", 42))
    dtype = getattr(torch, recipe.dtype)
    model, processor = open_language_model(
        arguments.model, image_tokenizer, image_processor, recipe.lora, dtype, recipe.code_embeddings
    )

    count = min(SHOWN, len(images))
    shown = [round(k * (len(images) - 1) / max(1, count - 1)) for k in range(count)]  # evenly spaced
    prompts = [captions[number][0] for number in shown]

    device = "cuda" if torch.cuda.is_available() else "cpu"  # training has moved the merged model to the first GPU

    def try_out(language_model):
        language_model.to(device)
        written = write_captions(language_model, processor, codes=codes[shown, 0])
        pipeline = SeedPipeline.from_pretrained(
            arguments.model, image_tokenizer=image_tokenizer, language_model=language_model, processor=processor
        ).to(device)
        pipeline.set_progress_bar_config(disable=True)
        noise = [torch.Generator().manual_seed(0) for _ in prompts]
        return written, pipeline(prompt=prompts, generator=noise).images

    before = try_out(load_language_model(arguments.model, dtype))
    run_language_stage(arguments.output, recipe, model, processor, [file])
    merged = save_language_model(
        arguments.output, model, processor, str(arguments.model), arguments.model, arguments.recipe
    )
    after = try_out(merged)
    for prompt, old, new in zip(prompts, before[0], after[0]):
        print(f"{prompt!r}: was called {old!r}, is now called {new!r}")
    sheet = before_after([images[number] for number in shown], prompts, before, after)
    sheet.save(arguments.output / "before_after.png")
    print(f"Saved to {arguments.output}; see before_after.png there.")


@torch.no_grad()
def tokenize_views(images: list[Image.Image], views: int, model, processor) -> torch.LongTensor:
    """Return the codes of every picture and of `views - 1` augmented copies of it, `(pictures, views, num_codes)`."""
    rows = []
    for number, image in enumerate(images):
        copies = [augment(image, random.Random(f"{number}-{view}")) for view in range(1, views)]
        pixel_values = processor([image, *copies], return_tensors="pt")["pixel_values"]
        rows.append(model.get_image_tokens(pixel_values))
    return torch.stack(rows)


def before_after(images, prompts, before, after) -> Image.Image:
    """
    Return a sheet with one row for each picture: the picture itself over its caption, and what the model draws from
    that caption over what it calls the picture, before and after training.
    """
    columns = [(images, prompts), before[::-1], after[::-1]]
    font = ImageFont.load_default(size=13)
    width, height = 2 * CELL + MARGIN, CELL + LINE + MARGIN
    sheet = Image.new("RGB", (MARGIN + 3 * width, LINE + MARGIN + len(images) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, (pictures, words)) in enumerate(zip(("yours", "before", "after"), columns)):
        left = MARGIN + column * width
        draw.text((left, MARGIN // 2), title, fill="black", font=font)
        for row, (picture, text) in enumerate(zip(pictures, words)):
            top = LINE + MARGIN + row * height
            sheet.paste(picture.convert("RGB").resize((CELL, CELL)), (left, top))
            draw.text((left, top + CELL), plain_letters(text)[:36], fill="#555555", font=font)
    return sheet


if __name__ == "__main__":
    main()
