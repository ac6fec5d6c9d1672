"""Pretrain a bidirectional Q-Former on a frozen vision model with BLIP-2's contrastive, matching and captioning losses.

SEED starts from BLIP-2's Q-Former. This script makes one for another vision model, or for other sizes.

    python examples/train_qformer.py --recipe examples/recipes/qformer/tiny.yaml \
        --vision-model runs/encoder --text-tokenizer runs/text_tokenizer \
        --data emoji64/train.parquet --extra-data icons64.parquet \
        --feature-cache runs/features --output runs/qformer

The vision model brings its own preprocessing if its folder has a preprocessor_config.json. The text tokenizer needs
BERT's special tokens `[CLS]`, `[SEP]` and `[PAD]`; examples/seed_tiny/train_text_tokenizer.py makes a small one.

Run the same command again to resume. `accelerate launch examples/train_qformer.py ...` uses several processes.
"""

from arguments import parse_stage_arguments, stage_data
from transformers import AutoTokenizer

from seed import SeedForImageTextPretraining
from seed.training.datasets import ContrastiveCollator
from seed.training.recipes import apply_head_settings
from seed.training.runs import loaded_hash, vocabulary_hash
from seed.training.stage import (
    create_model,
    open_sources,
    read_recipe,
    run_stage,
    save_stage,
)


def main() -> None:
    arguments = parse_stage_arguments(
        __doc__,
        starts_from=None,
        extra={"--text-tokenizer": "folder or Hub id of the text branch's tokenizer, e.g. bert-base-uncased"},
        optional={"--vision-model": "folder or Hub id of the frozen vision model, instead of the recipe's"},
    )
    recipe = read_recipe(arguments.recipe)
    recipe.vision_model = arguments.vision_model or recipe.vision_model
    tokenizer = AutoTokenizer.from_pretrained(arguments.text_tokenizer)
    data = stage_data(arguments)

    model, processor = create_model(recipe, vocab_size=len(tokenizer))
    head = SeedForImageTextPretraining(model.config)
    head.model.vision_model.load_state_dict(model.vision_model.state_dict())
    start = {"text vocabulary": vocabulary_hash(tokenizer)}
    if recipe.vision_model is not None:  # otherwise it is drawn at random, like all other weights
        start["vision model"] = loaded_hash(head.model.vision_model)
    apply_head_settings(head, recipe.head)
    sources = open_sources(data, recipe, head.model, processor, arguments.output, arguments.feature_cache)
    collator = ContrastiveCollator(tokenizer, processor, recipe.data.max_text_length)
    recipe.vision_model = None  # The run knows the vision model by its weights, not by where they lie.
    run_stage(arguments.output, recipe, head, collator, sources, start, max_steps=arguments.max_steps)
    save_stage(arguments.output, head.model, processor, tokenizer, arguments.recipe)


if __name__ == "__main__":
    main()
