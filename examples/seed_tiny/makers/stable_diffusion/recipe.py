"""The recipe of `train_stable_diffusion.py`, which has a section for each stage and whose keys are all checked."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass
class StageRecipe:
    """The schedule of every stage: the learning rate warms up, is constant, and decays linearly to zero."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    decay_steps: int = 0
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    save_every: int = 500


@dataclass
class VaeRecipe(StageRecipe):
    model: dict = dataclasses.field(default_factory=dict)
    kl_weight: float = 0.02
    edge_weight: float = 0.5
    chroma_weight: float = 0.5


@dataclass
class DecoderRecipe(StageRecipe):
    edge_weight: float = 0.5
    chroma_weight: float = 0.5


@dataclass
class TextRecipe(StageRecipe):
    model: dict = dataclasses.field(default_factory=dict)
    vocab_size: int = 4096
    views: int = 2
    view_size: int = 128
    feature_dropout: float = 0.2
    temperature: float = 0.07
    sentence_package: str | None = None  # a package that holds a sentence encoder in its folder `model`
    sentence_weight: float = 1.0


@dataclass
class UnetRecipe(StageRecipe):
    model: dict = dataclasses.field(default_factory=dict)
    scheduler: dict = dataclasses.field(default_factory=dict)
    caption_dropout: float = 0.1
    name_probability: float = 0.5
    snr_limit: float = 5.0


@dataclass
class Recipe:
    vae: VaeRecipe
    decoder: DecoderRecipe
    text: TextRecipe
    unet: UnetRecipe
    seed: int = 0
    threads: int = 1


def load_recipe(path: str | Path) -> Recipe:
    """
    Read a recipe.

    Raises:
        ValueError: a section is not a mapping, no stage knows a key, or a key is missing; the message names it.
    """

    def build(cls, values, where):
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {where or 'the recipe'} must be a mapping, got {values!r}.")
        unknown = sorted(values.keys() - fields.keys())
        if unknown:
            raise ValueError(f"{path}: unknown key {where}{unknown[0]!s}; known are {', '.join(sorted(fields))}.")
        required = {
            name for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }  # fmt: skip
        if required - values.keys():
            raise ValueError(f"{path}: missing key {where}{min(required - values.keys())}.")
        stages = typing.get_type_hints(Recipe) if cls is Recipe else {}
        stages = {name: kind for name, kind in stages.items() if dataclasses.is_dataclass(kind)}
        return cls(**{k: build(stages[k], v, f"{k}.") if k in stages else v for k, v in values.items()})

    return build(Recipe, yaml.safe_load(Path(path).read_text()), "")
