"""Train stage I: a Causal Q-Former whose last embedding is contrasted with the caption (paper, section 3.1).

Stage I starts from a bidirectional Q-Former and makes its queries causal. The paper starts from BLIP-2's Q-Former
(`seed convert blip2` makes a folder of it); seed-tiny starts from what examples/train_qformer.py makes.

    python examples/train_stage1.py --recipe examples/recipes/stage1/tiny.yaml --init runs/qformer \
        --data emoji64/train.parquet --extra-data icons64.parquet \
        --feature-cache runs/features --output runs/stage1

The recipe makes the queries causal. examples/recipes/stage1/tiny_bidirectional.yaml leaves them as they are and trains
the control for the first row of the paper's Table 1. Run the same command again to resume. `accelerate launch
examples/train_stage1.py ...` uses several processes; negatives come from all of them.
"""

import torch
from arguments import parse_stage_arguments, stage_data
from transformers import AutoTokenizer

from seed import SeedForContrastiveLearning, SeedImageProcessorPil
from seed.training.datasets import ContrastiveCollator
from seed.training.recipes import apply_head_settings
from seed.training.runs import loaded_hash, vocabulary_hash
from seed.training.stage import open_sources, read_config, read_recipe, run_stage, save_stage


def main() -> None:
    arguments = parse_stage_arguments(__doc__, starts_from="folder or Hub id of the pretrained bidirectional model")
    recipe = read_recipe(arguments.recipe)
    tokenizer = AutoTokenizer.from_pretrained(arguments.init)
    processor = SeedImageProcessorPil.from_pretrained(arguments.init)

    config = read_config(arguments.init, recipe, use_code_branch=False)
    head, info = SeedForContrastiveLearning.from_pretrained(
        arguments.init,
        config=config,
        dtype=torch.float32,  # a packaged tokenizer is in bfloat16, which would lose small updates
        new_modules=("temperature",),
        output_loading_info=True,
    )
    start = {"model": loaded_hash(head, info["missing_keys"]), "text vocabulary": vocabulary_hash(tokenizer)}
    apply_head_settings(head, recipe.head)
    sources = open_sources(
        stage_data(arguments), recipe, head.model, processor, arguments.output, arguments.feature_cache
    )
    collator = ContrastiveCollator(tokenizer, processor, recipe.data.max_text_length)
    run_stage(arguments.output, recipe, head, collator, sources, start, max_steps=arguments.max_steps)
    save_stage(arguments.output, head.model, processor, tokenizer, arguments.recipe)


if __name__ == "__main__":
    main()
