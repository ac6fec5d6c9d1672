"""The recipe of `train_encoder.py`; every key is checked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seed.configuration_seed import SeedQFormerConfig
from seed.training.recipes import build_recipe, check_recipe_keys, read_yaml


@dataclass
class EncoderRecipe:
    """
    Args:
        steps: the length of the run; the learning rates fall to zero over it.
        concepts: how many concepts of each `--data` file a step has, in the order of the files; two pictures of each.
        size: pixels of a side of the training pictures.
        encoder_learning_rate, head_learning_rate: the rates of the encoder, and of the text branch and projections.
        qformer_config: the text branch, as in the Q-Former's own recipe; the tokenizer gives the vocabulary's size.
        projection_dim: the width of the contrastive space, as in the Q-Former's own recipe.
        style_weight: the weight of the loss between two pictures of a concept, beside that between pictures and texts.
        style_temperature: the temperature of that loss; the other one learns its own.
        first_caption_probability: how often the first caption is drawn where a picture has several.
        max_text_length: tokens to which captions are cut.
    """

    steps: int
    concepts: list
    size: int = 128
    encoder_learning_rate: float = 3.0e-4
    head_learning_rate: float = 1.0e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    qformer_config: dict[str, Any] = field(default_factory=dict)
    projection_dim: int = 128
    label_smoothing: float = 0.1
    style_weight: float = 0.5
    style_temperature: float = 0.1
    first_caption_probability: float = 0.5
    max_text_length: int = 24
    save_minutes: float = 5.0
    logging_steps: int = 25
    seed: int = 0


def load_encoder_recipe(path: str | Path) -> EncoderRecipe:
    """
    Read a recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a mapping, or has an unknown or a missing key or a value of another type.
    """
    recipe = build_recipe(EncoderRecipe, read_yaml(path), str(path))
    check_recipe_keys(recipe.qformer_config, SeedQFormerConfig, f"{path}: qformer_config")
    if not recipe.concepts or not all(isinstance(count, int) and count > 0 for count in recipe.concepts):
        raise ValueError(f"{path}: concepts is {recipe.concepts}; expected one whole number for each --data file.")
    return recipe


__all__ = ["EncoderRecipe", "load_encoder_recipe"]
