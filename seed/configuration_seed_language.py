"""Configurations of SEED's language models: a text model's own, and the vocabulary of words and visual tokens."""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, OPTConfig


@dataclass(kw_only=True)
class SeedVocabularyFields:
    r"""
    The vocabulary of a language model that reads and writes images: the text tokenizer's ids, then `<img>`, `</img>`
    and one visual token per code, contiguous. With OPT's tokenizer (50,265 entries) and SEED's codebook: `<img>` 50265,
    `</img>` 50266, code k 50267 + k, 58,459 in all.

    Args:
        text_vocab_size (`int`): entries of the text tokenizer, before the visual tokens were added.
        text_embedding_rows (`int`, *optional*): rows of the text model's own embedding, which may be padded (OPT's has
            50,272); the text vocabulary's size if None.
        codebook_size, code_dim, num_codes (`int`): of the image tokenizer: 8192 codes of width 32, 32 per image.
        boi_token_id, eoi_token_id, first_code_token_id (`int`, *optional*): where the visual tokens stand; derived
            from `text_vocab_size`, stored so that other software need not derive them.
        vocab_size (`int`, *optional*): of words and visual tokens together; derived.
        image_tokenizer_hash (`str`, *optional*): [`SeedModel.codes_hash`] of the image tokenizer whose codes the model
            was made for.
        code_embeddings (`bool`): whether every code also has an input embedding of its own, added to the projection of
            its code vector. The paper has the projection alone, which is linear in `code_dim` numbers; on few pictures
            a language model reads codes sooner with rows of their own (our choice).
    """

    vocab_size: int | None = None
    text_vocab_size: int = 50265
    text_embedding_rows: int | None = None
    codebook_size: int = 8192
    code_dim: int = 32
    num_codes: int = 32
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    first_code_token_id: int | None = None
    image_tokenizer_hash: str | None = None
    code_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.text_embedding_rows is None:
            self.text_embedding_rows = self.text_vocab_size
        if self.text_embedding_rows < self.text_vocab_size:
            raise ValueError(
                f"text_embedding_rows is {self.text_embedding_rows}, fewer than the {self.text_vocab_size} entries of "
                "the text vocabulary: the tokenizer belongs to a larger text model than this one."
            )
        derived = {
            "boi_token_id": self.text_vocab_size,
            "eoi_token_id": self.text_vocab_size + 1,
            "first_code_token_id": self.text_vocab_size + 2,
            "vocab_size": self.text_vocab_size + 2 + self.codebook_size,
        }
        for name, value in derived.items():
            given = getattr(self, name)
            if given not in (None, value):
                raise ValueError(
                    f"{name} is {given}, but {self.text_vocab_size} text ids, <img>, </img> and {self.codebook_size} "
                    f"codes, one after the other, make it {value}. Leave it out, or correct text_vocab_size."
                )
            setattr(self, name, value)
        # A checkpoint that was saved with its code names its pipeline, for which transformers asks for trust. Where
        # this package is installed the pipeline is registered, and nothing has to be trusted.
        if not type(self).__module__.startswith("transformers_modules"):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)


@strict
class SeedOPTConfig(SeedVocabularyFields, OPTConfig):
    r"""
    Configuration of [`SeedOPTForCausalLM`]: an OPT (all arguments of [`OPTConfig`]) with visual tokens in its
    vocabulary (those of [`SeedVocabularyFields`]; paper, section 3.3).
    """

    model_type = "seed_opt"


@strict
class SeedLlamaConfig(SeedVocabularyFields, LlamaConfig):
    r"""
    Configuration of [`SeedLlamaForCausalLM`]: a Llama (all arguments of [`LlamaConfig`]) with visual tokens in its
    vocabulary (those of [`SeedVocabularyFields`]).
    """

    model_type = "seed_llama"
    text_vocab_size: int = 32000


__all__ = ["SeedLlamaConfig", "SeedOPTConfig", "SeedVocabularyFields"]
