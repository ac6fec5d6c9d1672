"""Configuration of SEED-OPT."""

from huggingface_hub.dataclasses import strict
from transformers import OPTConfig

from .configuration_seed_language import SeedVocabularyFields


@strict
class SeedOPTConfig(SeedVocabularyFields, OPTConfig):
    r"""
    Configuration of [`SeedOPTForCausalLM`]: an OPT (all arguments of [`OPTConfig`]) with visual tokens in its
    vocabulary (those of [`SeedVocabularyFields`]; paper, section 3.3).
    """

    model_type = "seed_opt"


__all__ = ["SeedOPTConfig"]
