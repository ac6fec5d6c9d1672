"""The real architecture at a size that runs in milliseconds, for any test to import."""

import copy

from seed.configuration_seed import SeedConfig

TINY = {
    "vision_config": {
        "model_type": "blip_2_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        "initializer_range": 0.02,
    },
    "qformer_config": {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 100,
        "max_position_embeddings": 32,
    },
    "reverse_qformer_config": {"num_hidden_layers": 2},
    "decoder_num_heads": 4,
    "decoder_num_layers": 2,
    "codebook_size": 64,
    "code_dim": 8,
    "generation_dim": 40,
    "projection_dim": 16,
}


def make_tiny_seed_config(**overrides) -> SeedConfig:
    """A tiny `SeedConfig` (28 x 28 pictures, 32 codes of 64); dicts among `overrides` are merged, others replace."""
    values = copy.deepcopy(TINY)
    for key, value in overrides.items():
        merge = isinstance(value, dict) and isinstance(values.get(key), dict) and "model_type" not in value
        values[key] = values[key] | value if merge else value
    return SeedConfig(**values)
