"""BLIP-2-style pretraining of a bidirectional Q-Former on a frozen, pretrained vision model.

What SEED starts from, where BLIP-2's own weights are not to be had: contrastive, matching and captioning losses.

    python examples/train_qformer.py --recipe examples/recipes/qformer/tiny.yaml \
        --data emoji64/train.parquet --extra-data icons64.parquet \
        --feature-cache runs/features --output runs/qformer

Run it again with the same arguments to resume. Several processes: `accelerate launch examples/train_qformer.py ...`.
"""

from pathlib import Path

from arguments import parse_stage_arguments, stage_data

from seed import SeedForImageTextPretraining
from seed.training.datasets import ContrastiveCollator
from seed.training.recipes import apply_head_settings
from seed.training.runs import kept_tokenizer, loaded_hash, vocabulary_hash
from seed.training.stage import (
    create_model,
    open_sources,
    read_captions,
    read_recipe,
    run_stage,
    save_stage,
)
from seed.training.text_tokenizer import train_text_tokenizer


def main() -> None:
    arguments = parse_stage_arguments(__doc__, starts_from=None)
    recipe = read_recipe(arguments.recipe)
    data = stage_data(arguments)
    captions = read_captions(data)
    tokenizer = kept_tokenizer(Path(arguments.output), captions, recipe.data.vocab_size, train_text_tokenizer)

    model, processor = create_model(recipe, vocab_size=len(tokenizer))
    head = SeedForImageTextPretraining(model.config)
    head.model.vision_model.load_state_dict(model.vision_model.state_dict())
    start = {"text vocabulary": vocabulary_hash(tokenizer)}
    if recipe.vision_model is not None:  # else drawn, as all the rest
        start["vision model"] = loaded_hash(head.model.vision_model)
    apply_head_settings(head, recipe.head)
    sources = open_sources(data, recipe, head.model, processor, arguments.output, arguments.feature_cache)
    collator = ContrastiveCollator(tokenizer, processor, recipe.data.max_text_length)
    run_stage(arguments.output, recipe, head, collator, sources, start, max_steps=arguments.max_steps)
    save_stage(arguments.output, head.model, processor, tokenizer, arguments.recipe)


if __name__ == "__main__":
    main()
