"""Recipes: one YAML file per stage and size, checked against a schema before anything is computed."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from transformers import TrainingArguments

from ..configuration_seed import SeedConfig, SeedQFormerConfig
from ..image_processing_seed import SeedImageProcessorPil

T = TypeVar("T")
# Fields of `TrainingArguments` that a recipe may not set, and why.
_DECIDED = {
    "output_dir": "--output names the folder",
    "max_steps": "the recipe's epochs or --max-steps set the length of the run",
    "num_train_epochs": "the recipe's epochs or --max-steps set the length of the run",
    "remove_unused_columns": "the scripts need every column",
    "eval_strategy": "no script evaluates while it trains; `seed evaluate` does afterwards",
}
_TYPE_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "nothing"}


@dataclass
class DataRecipe:
    """
    The part of a recipe about the data.

    Args:
        views: number of views of each picture in the feature cache: the picture itself, and augmented ones. Without
            `--feature-cache` a stage trains on the pictures themselves.
        extra_views: the same for `--extra-data`.
        max_text_length: captions are cut to this many tokens (32 in the released recipe).
        first_caption_probability: how often the first of several captions is taken; else one of all, evenly.
    """

    views: int = 1
    extra_views: int = 1
    max_text_length: int = 32
    first_caption_probability: float = 0.5


@dataclass
class StageRecipe:
    """
    The recipe of a training stage of the image tokenizer.

    Args:
        model: overrides of [`SeedConfig`].
        image_processor: overrides of [`SeedImageProcessor`], for the stage that creates the model.
        vision_model: folder or Hub id of the frozen vision model, for the stage that creates the model; `AutoModel`
            loads it. Its `preprocessor_config.json`, where there is one, gives the image processor's size, mean and
            standard deviation, unless `image_processor` says otherwise.
        head: attributes of the stage's head, see `modeling_seed_heads`.
        data: see [`DataRecipe`].
        epochs: number of passes over the data.
        training: keyword arguments of transformers' `TrainingArguments`, and `bf16: auto`, see [`training_arguments`].
    """

    epochs: float
    training: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    image_processor: dict[str, Any] = field(default_factory=dict)
    vision_model: str | None = None
    head: dict[str, Any] = field(default_factory=dict)
    data: DataRecipe = field(default_factory=DataRecipe)


def load_recipe(path: str | Path) -> StageRecipe:
    """
    Load and check the recipe of a stage of the image tokenizer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a mapping, or a key is unknown or missing; the message names it and the known keys.
    """
    values = read_yaml(path)
    values["data"] = build_recipe(DataRecipe, values.get("data", {}), f"{path}: data")
    recipe = build_recipe(StageRecipe, values, str(path))
    check_recipe_keys(recipe.model, SeedConfig, f"{path}: model")
    _check_keys(recipe.image_processor, _processor_settings(), f"{path}: image_processor")
    for part in ("qformer_config", "reverse_qformer_config"):
        check_recipe_keys(recipe.model.get(part, {}), SeedQFormerConfig, f"{path}: model.{part}")
    check_training(recipe, path)
    return recipe


def read_yaml(path: str | Path) -> dict[str, Any]:
    """
    Read the mapping in a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path} is not a mapping of keys to values.")
    return values


def apply_head_settings(head, settings: dict[str, Any]) -> None:
    """
    Set a training head's attributes (loss weights and the like) from a recipe's `head`.

    Raises:
        ValueError: the head has no such setting.
    """
    known = sorted(
        name
        for cls in type(head).__mro__
        for name, value in vars(cls).items()
        if cls.__module__ == type(head).__module__ and isinstance(value, int | float) and not name.startswith("_")
    )
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"Unknown key {name!r} in the recipe's head; {type(head).__name__} has {known}.")
        _check_type(value, float | bool, f"{name!r} in the recipe's head")
        setattr(head, name, value)


def check_training(recipe, path: str | Path) -> None:
    """
    Check a recipe's `epochs` and `training`.

    Raises:
        ValueError: `epochs` is not above 0; `training` has a key that `TrainingArguments` does not know, that a recipe
            may not set, or whose number YAML reads as text.
    """
    if recipe.epochs <= 0:
        raise ValueError(f"{path}: epochs is {recipe.epochs}; expected more than 0.")
    check_recipe_keys(recipe.training, TrainingArguments, f"{path}: training")
    for item in dataclasses.fields(TrainingArguments):
        if isinstance(recipe.training.get(item.name), str) and type(item.default) in (int, float):
            _check_type(recipe.training[item.name], float, f"{item.name!r} in the recipe {path}: training")
    for key in _DECIDED.keys() & recipe.training.keys():
        raise ValueError(f"{key!r} does not belong in the recipe {path}: training: {_DECIDED[key]}.")


def check_recipe_keys(values: dict[str, Any], cls: type, where: str) -> None:
    """
    Check that all keys of a part of a recipe are fields of the dataclass `cls`.

    Raises:
        ValueError: a key is no such field; the message says `where`.
    """
    _check_keys(values, {item.name for item in dataclasses.fields(cls)}, where)


def _check_keys(values: dict[str, Any], known: set[str], where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {where} is {values!r}; expected keys with values.")
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"Unknown key {unknown[0]!r} in the recipe {where}; expected some of {sorted(known)}.")


def _processor_settings() -> set[str]:
    """Return the settings of an image processor, which accepts unknown ones in silence."""
    return {name for name in SeedImageProcessorPil.valid_kwargs.__annotations__ if hasattr(SeedImageProcessorPil, name)}


def build_recipe(cls: type[T], values: dict[str, Any], where: str) -> T:
    """
    Make the dataclass `cls` of a mapping from a recipe.

    Raises:
        ValueError: a key is unknown or missing, or a value has another type.
    """
    check_recipe_keys(values, cls, where)
    known = {item.name: item for item in dataclasses.fields(cls)}
    required = {
        name
        for name, item in known.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - values.keys())
    if missing:
        raise ValueError(f"The recipe {where} lacks the key {missing[0]!r}.")
    types = get_type_hints(cls)
    for name, value in values.items():
        _check_type(value, types[name], f"{name!r} in the recipe {where}")
    return cls(**values)


def _check_type(value, expected, what: str) -> None:
    if get_origin(expected) is dict:
        inner = get_args(expected)[1]
        if not isinstance(value, dict):
            raise ValueError(f"{what} is {value!r}; expected keys with values.")
        for key, item in value.items():
            if inner is not Any:
                _check_type(item, inner, f"{key!r} of {what}")
        return
    known = get_args(expected) or (expected,)
    if float in known:
        known = (*known, int)
    fits = isinstance(value, known) and (bool in known or not isinstance(value, bool))
    if not fits:
        hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(value, str) and float in known else ""
        names = " or ".join(_TYPE_NAMES.get(kind, kind.__name__) for kind in get_args(expected) or (expected,))
        raise ValueError(f"{what} is {value!r}; expected {names}{hint}.")
