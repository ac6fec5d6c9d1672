"""Train the language model: LoRA on a frozen OPT or Llama, and all of the visual tokens (paper, section 3.3).

Stage 1 learns image to text. Stage 2 learns image to text and text to image together. Make the codes first:

    seed tokenize emoji64/train.parquet --model runs/seed --output runs/codes.parquet
    python examples/train_language.py --recipe examples/recipes/language_stage1/tiny.yaml --model runs/text_model \
        --image-tokenizer runs/seed --data runs/codes.parquet --output runs/language1
    python examples/train_language.py --recipe examples/recipes/language_stage2/tiny.yaml \
        --model runs/language1/adapter --image-tokenizer runs/seed --data runs/codes.parquet --output runs/language2

The output folder is a SEED repository with LoRA merged; its folder `adapter/` holds only the weights that were trained.
Run the same command again to resume. `accelerate launch examples/train_language.py ...` uses several processes.
"""

import torch
from arguments import add_run_options, make_parser
from transformers import set_seed

from seed.data.tokenization import load_image_tokenizer
from seed.training.language_examples import LanguageFile, load_language_recipe
from seed.training.language_stage import check_output, run_language_stage, save_language_model
from seed.training.lora import adapter_base, is_adapter, open_language_model
from seed.training.runs import process_state


def main() -> None:
    parser = make_parser(__doc__)
    add_run_options(parser)
    parser.add_argument(
        "--model", required=True, help="folder or Hub id of a text model, a SEED language model or an adapter"
    )
    parser.add_argument(
        "--image-tokenizer", required=True, help="folder or Hub id of a SEED repository or an image tokenizer"
    )
    parser.add_argument(
        "--data", required=True, action="append", help="Parquet file of codes or texts; may be repeated"
    )
    arguments = parser.parse_args()

    recipe = load_language_recipe(arguments.recipe)
    base = adapter_base(arguments.model) if is_adapter(arguments.model) else arguments.model
    check_output(arguments.output, base)
    image_tokenizer, image_processor = load_image_tokenizer(arguments.image_tokenizer)
    config, codes_hash = image_tokenizer.config, image_tokenizer.codes_hash()
    files = [LanguageFile(path, codes_hash, config.codebook_size, config.num_codes) for path in arguments.data]
    set_seed(recipe.training.get("seed", 42))  # so that new weights are the same in every run
    dtype = getattr(torch, recipe.dtype)
    model, processor = open_language_model(
        arguments.model, image_tokenizer, image_processor, recipe.lora, dtype, recipe.code_embeddings
    )
    run_language_stage(arguments.output, recipe, model, processor, files, arguments.max_steps)
    if process_state().is_main_process:
        save_language_model(arguments.output, model, processor, base, arguments.image_tokenizer, arguments.recipe)
        print(f"Saved to {arguments.output}")


if __name__ == "__main__":
    main()
