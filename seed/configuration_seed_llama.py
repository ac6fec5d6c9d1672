"""Configuration of SEED-Llama."""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .configuration_seed_language import SeedVocabularyFields


@strict
class SeedLlamaConfig(SeedVocabularyFields, LlamaConfig):
    r"""
    Configuration of [`SeedLlamaForCausalLM`]: a Llama (all arguments of [`LlamaConfig`]) with visual tokens in its
    vocabulary (those of [`SeedVocabularyFields`]).
    """

    model_type = "seed_llama"
    text_vocab_size: int = 32000


__all__ = ["SeedLlamaConfig"]
