"""Configurations of SEED's language models: a text model's fields, and the vocabulary of words and visual tokens."""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, OPTConfig


@dataclass(kw_only=True)
class SeedVocabularyFields:
    r"""
    The vocabulary of a language model that reads and writes images: the text tokenizer's ids, then `<img>`, `</img>`
    and one visual token per code, without gaps. With OPT's tokenizer (50,265 entries) and SEED's codebook `<img>` has
    the id 50265, `</img>` 50266 and code k 50267 + k, and the vocabulary has 58,459 entries.

    Args:
        text_vocab_size (`int`): entries of the text tokenizer, before the visual tokens were added.
        text_embedding_rows (`int`, *optional*): rows of the text model's own embedding, which may be padded (OPT's has
            50,272); the text vocabulary's size if None.
        codebook_size, code_dim, num_codes (`int`): the image tokenizer's codebook, 8192 codes of width 32, and its
            codes per image, 32.
        boi_token_id, eoi_token_id, first_code_token_id (`int`, *optional*): ids of the visual tokens. They are derived
            from `text_vocab_size`, and stored so that other software need not derive them.
        vocab_size (`int`, *optional*): number of words and visual tokens together; derived.
        image_tokenizer_hash (`str`, *optional*): [`SeedModel.codes_hash`] of the image tokenizer whose codes the model
            was made for.
        code_embeddings (`bool`): every code also has an input embedding of its own, which is added to the projection of
            its code vector. The paper has the projection alone, which is linear in `code_dim` numbers. With few
            pictures a language model learns sooner to read codes that have rows of their own (our choice).

    Raises:
        ValueError: the text model has fewer rows than the tokenizer has entries, or a given id is not the derived one.
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
        # A checkpoint that was saved with its code names its pipeline, and transformers asks the user to trust that.
        # Where this package is installed the pipeline is registered, and nothing has to be trusted.
        if not type(self).__module__.startswith("transformers_modules"):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)


@strict
class SeedOPTConfig(SeedVocabularyFields, OPTConfig):
    r"""
    Configuration of [`SeedOPTForCausalLM`]: an OPT (all arguments of [`OPTConfig`]) with visual tokens in its
    vocabulary (all arguments of [`SeedVocabularyFields`]; paper, section 3.3).
    """

    model_type = "seed_opt"


@strict
class SeedLlamaConfig(SeedVocabularyFields, LlamaConfig):
    r"""
    Configuration of [`SeedLlamaForCausalLM`]: a Llama (all arguments of [`LlamaConfig`]) with visual tokens in its
    vocabulary (all arguments of [`SeedVocabularyFields`]).
    """

    model_type = "seed_llama"
    text_vocab_size: int = 32000


__all__ = ["SeedLlamaConfig", "SeedOPTConfig", "SeedVocabularyFields"]
