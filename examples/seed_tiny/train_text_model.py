"""Train a tiny OPT from scratch on text; seed-tiny's language model starts from it.

    python examples/seed_tiny/build_text.py --captions data/emoji64/train.parquet \
        --captions data/emoji64/icons.parquet --output data/text
    python examples/seed_tiny/train_text_model.py --recipe examples/recipes/text_model/tiny.yaml \
        --data data/text/train.parquet --output runs/text_model

Run the same command again to resume. `AutoModelForCausalLM` and `AutoTokenizer` load the output folder. `seed evaluate
text` measures the model's perplexity on held-out text.
"""

import argparse
import shutil
from pathlib import Path

from makers.text_model import (
    TextBlocks,
    TextModelRecipe,
    load_text_model_recipe,
    read_mixture,
    text_model_config,
    train_byte_level_tokenizer,
)
from makers.text_tokenizer import kept_tokenizer
from transformers import OPTForCausalLM, set_seed

from seed.files_seed import replace_into
from seed.training.runs import (
    STEP,
    check_run,
    file_hash,
    last_checkpoint,
    recipe_values,
    require_one_process,
    steps_of,
    vocabulary_hash,
)
from seed.training.trainer import FiniteTrainer, training_arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="YAML file, such as examples/recipes/text_model/tiny.yaml")
    parser.add_argument("--data", required=True, help="Parquet file with the columns text and source")
    parser.add_argument("--output", required=True, type=Path, help="folder for the model and its checkpoints")
    parser.add_argument("--max-steps", type=int, help="steps of the run, in place of the recipe's epochs")
    args = parser.parse_args()
    require_one_process()

    recipe = load_text_model_recipe(args.recipe)
    seed = recipe.training.get("seed", 42)
    texts = read_mixture(args.data, recipe.weights, seed)
    resumes = last_checkpoint(args.output / "checkpoints") is not None
    folder = args.output / "text_tokenizer"
    tokenizer = kept_tokenizer(folder, texts, recipe.vocab_size, train_byte_level_tokenizer, needed=resumes)
    blocks = TextBlocks(texts, tokenizer, recipe.block_length)
    print(f"{len(texts)} documents, {blocks.blocks.size} tokens in {len(blocks)} blocks")
    set_seed(seed)
    model = OPTForCausalLM(text_model_config(recipe, tokenizer))
    run = recipe_values(recipe) | {"data": file_hash(args.data), "text vocabulary": vocabulary_hash(tokenizer)}
    train(model, blocks, recipe, run, args.output, args.max_steps)
    save(model, tokenizer, args)


def train(
    model, blocks: TextBlocks, recipe: TextModelRecipe, run: dict[str, object], output: Path, max_steps: int | None
) -> None:
    """
    Train the model, from the last checkpoint under `output` if there is one.

    Args:
        run: the values by which [`check_run`] recognises the run.

    Raises:
        ValueError: the checkpoints under `output` come from a run with another recipe, other data or another tokenizer.
        TrainingDivergedError: a loss or weight is not finite; the last good checkpoint is kept.
    """
    checkpoints = output / "checkpoints"
    options = training_arguments(checkpoints, recipe.training)
    batch = options.train_batch_size * options.gradient_accumulation_steps * options.world_size
    options.max_steps = steps_of(max_steps, recipe.epochs, len(blocks), batch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f}M parameters, {options.max_steps} steps of {batch} blocks")
    last = last_checkpoint(checkpoints)
    check_run(output, run | {STEP: batch}, last)
    FiniteTrainer(model=model, args=options, train_dataset=blocks).train(resume_from_checkpoint=last)


def save(model, tokenizer, args: argparse.Namespace) -> None:
    """Save model, tokenizer and recipe, each of them whole, by [`replace_into`]."""
    partial = args.output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.config.use_cache = True  # Trainer turns it off; config.json should not say so
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.copy(args.recipe, partial / "recipe.yaml")
    replace_into(partial, args.output)
    print(f"Saved to {args.output}")


if __name__ == "__main__":
    main()
