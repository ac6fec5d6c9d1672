"""Train stage II: codebook, code decoders and Reverse Q-Former on a frozen stage I (paper, section 3.2).

The targets are the causal embeddings and a Stable Diffusion model's text features of one fixed caption for each
picture. The text features are computed before training and kept if they fit in 4 GiB; otherwise each batch's features
are computed on the device that trains.

    python examples/train_stage2.py --recipe examples/recipes/stage2/tiny.yaml --init runs/stage1 \
        --decoder runs/stable_diffusion --data emoji64/train.parquet \
        --feature-cache runs/features --output runs/image_tokenizer

Run the same command again to resume. `accelerate launch examples/train_stage2.py ...` uses several processes.
"""

from pathlib import Path

import torch
from arguments import parse_stage_arguments, stage_data
from transformers import AutoTokenizer

from seed import SeedForQuantization, SeedImageProcessorPil
from seed.training.datasets import QuantizationCollator
from seed.training.feature_cache import open_embedding_cache
from seed.training.recipes import apply_head_settings
from seed.training.runs import last_checkpoint, loaded_hash, process_state, vocabulary_hash
from seed.training.stage import (
    first_embeddings,
    open_sources,
    read_config,
    read_recipe,
    run_stage,
    save_stage,
)
from seed.training.text_features import TextFeatures

NEW_MODULES = (
    "model.encode_layer",
    "model.quantizer",
    "model.decode_layer",
    "model.reconstruction_decoder",
    "model.generation_decoder",
    "model.reverse_qformer",
    "model.generation_projection",
    "code_counts",
    "training_steps",
)


def main() -> None:
    arguments = parse_stage_arguments(
        __doc__,
        starts_from="folder or Hub id of stage I's model",
        extra={"--decoder": "Stable Diffusion folder or Hub id whose text features are the target"},
    )
    recipe = read_recipe(arguments.recipe)
    tokenizer = AutoTokenizer.from_pretrained(arguments.init)
    processor = SeedImageProcessorPil.from_pretrained(arguments.init)

    text_features = TextFeatures(arguments.decoder)
    config = read_config(arguments.init, recipe, use_code_branch=True)
    config.generation_dim = text_features.dim
    head, info = SeedForQuantization.from_pretrained(
        arguments.init,
        config=config,
        dtype=torch.float32,  # a packaged tokenizer is in bfloat16, which would lose small updates
        new_modules=NEW_MODULES,
        output_loading_info=True,
    )
    start = {
        "model": loaded_hash(head, info["missing_keys"]),
        "text encoder": loaded_hash(text_features.text_encoder),
        "text encoder's vocabulary": vocabulary_hash(text_features.tokenizer),
    }
    apply_head_settings(head, recipe.head)
    sources = open_sources(
        stage_data(arguments), recipe, head.model, processor, arguments.output, arguments.feature_cache
    )
    for source in sources:
        if source.cache is not None:  # the Causal Q-Former is frozen, so that its output is computed once
            with process_state().main_process_first():
                source.cache = open_embedding_cache(head.model, source.cache)
    text_features.keep((captions[0] for source in sources for captions in source.captions), process_state().device)
    collator = QuantizationCollator(sources, text_features.tokenize, processor)
    resumes = last_checkpoint(Path(arguments.output) / "checkpoints") is not None
    if (head.pca_initialization or head.kmeans_initialization) and not resumes:
        head.initialize_from_embeddings(first_embeddings(head.model.eval(), recipe, collator, sources))
    run_stage(arguments.output, recipe, head, collator, sources, start, text_features, arguments.max_steps)
    head.model.set_empty_prompt_embeds(text_features.compute(text_features.tokenize([""])))
    save_stage(arguments.output, head.model, processor, tokenizer, arguments.recipe)


if __name__ == "__main__":
    main()
