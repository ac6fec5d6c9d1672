"""SEED-Llama: the paper's outlook, a stronger language model in OPT's place (section 5)."""

from transformers import LlamaForCausalLM

from .configuration_seed_llama import SeedLlamaConfig
from .modeling_seed_language import SeedLanguageModelMixin


class SeedLlamaForCausalLM(SeedLanguageModelMixin, LlamaForCausalLM):
    """Llama with visual tokens in its vocabulary; see [`SeedOPTForCausalLM`]."""

    config: SeedLlamaConfig
    config_class = SeedLlamaConfig
    text_model_class = LlamaForCausalLM

    def get_decoder(self):
        return self.model


__all__ = ["SeedLlamaForCausalLM"]
