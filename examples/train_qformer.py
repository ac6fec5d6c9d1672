"""BLIP-2-style pretraining of a bidirectional Q-Former on a frozen, pretrained vision model.

What SEED starts from, where BLIP-2's own weights are not to be had: contrastive, matching and captioning losses.

    python examples/train_qformer.py --recipe examples/recipes/qformer/tiny.yaml \
        --data emoji64/train.parquet --extra-data icons64.parquet \
        --feature-cache runs/features --output runs/qformer

Run it again with the same arguments to resume. Several processes: `accelerate launch examples/train_qformer.py ...`.
"""

from pathlib import Path

from transformers import AutoTokenizer

from seed import SeedForImageTextPretraining
from seed.training.datasets import ContrastiveCollator
from seed.training.recipes import apply_head_settings
from seed.training.runs import loaded_hash, process_state, vocabulary_hash
from seed.training.stage import (
    create_model,
    open_sources,
    parse_arguments,
    read_captions,
    read_recipe,
    run_stage,
    save_stage,
)
from seed.training.text_tokenizer import train_text_tokenizer


def main() -> None:
    arguments = parse_arguments(__doc__, starts_from=None)
    recipe = read_recipe(arguments.recipe)
    tokenizer_folder = Path(arguments.output) / "text_tokenizer"
    with process_state().main_process_first():
        if not tokenizer_folder.exists():
            partial = tokenizer_folder.with_name("text_tokenizer.partial")
            train_text_tokenizer(read_captions(arguments), recipe.data.vocab_size).save_pretrained(partial)
            partial.rename(tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    model, processor = create_model(recipe, vocab_size=len(tokenizer))
    head = SeedForImageTextPretraining(model.config)
    head.model.vision_model.load_state_dict(model.vision_model.state_dict())
    start = {"text vocabulary": vocabulary_hash(tokenizer)}
    if recipe.vision_model is not None:  # else drawn, as all the rest
        start["vision model"] = loaded_hash(head.model.vision_model)
    apply_head_settings(head, recipe.head)
    sources = open_sources(arguments, recipe, head.model, processor)
    collator = ContrastiveCollator(tokenizer, processor, recipe.data.max_text_length)
    run_stage(arguments, recipe, head, collator, sources, start)
    save_stage(arguments.output, head.model, processor, tokenizer, arguments.recipe)


if __name__ == "__main__":
    main()
