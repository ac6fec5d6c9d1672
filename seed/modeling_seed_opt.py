"""SEED-OPT: an OPT that reads and writes images (paper, section 3.3)."""

from transformers import OPTForCausalLM

from .configuration_seed_opt import SeedOPTConfig
from .modeling_seed_language import SeedLanguageModelMixin


class SeedOPTForCausalLM(SeedLanguageModelMixin, OPTForCausalLM):
    """
    OPT with visual tokens in its vocabulary.

    `SeedOPTForCausalLM.from_text_model(opt, seed_model)` extends any OPT; `from_pretrained` loads what was saved.
    """

    config: SeedOPTConfig
    config_class = SeedOPTConfig
    text_model_class = OPTForCausalLM

    def get_decoder(self):
        return self.model.decoder


__all__ = ["SeedOPTForCausalLM"]
