"""The visual tokens of a language model: their input embeddings, and the class of their linear layers."""

import weakref

import torch
from torch import nn

from .configuration_seed_language import SeedVocabularyFields


class VisualLinear(nn.Linear):
    """
    A linear layer of the visual tokens. It computes in its own dtype, whatever the text model's is: in training it is
    float32 beside frozen bfloat16 weights. Quantised loading (bitsandbytes) replaces every `nn.Linear`, but not this
    class, so that it can be trained beside a quantised text model.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.to(self.weight.dtype))


class SeedVisualEmbeddings(nn.Module):
    """
    Input embeddings of the visual tokens. Codes get a fully connected projection of the frozen codebook (paper, section
    3.3), to which `config.code_embeddings` adds a row for each code; `<img>` and `</img>` have a row each.

    Args:
        config: a configuration with the fields of [`SeedVocabularyFields`].
        dim: width of the text model's embedding.
    """

    def __init__(self, config: SeedVocabularyFields, dim: int):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.code_dim))
        self.projection = VisualLinear(config.code_dim, dim)
        self.codes = nn.Embedding(config.codebook_size, dim) if config.code_embeddings else None
        self.delimiters = nn.Embedding(2, dim)

    def forward(self, visual_ids: torch.LongTensor) -> torch.Tensor:
        """Embed visual tokens, `(...)` -> `(..., dim)`; 0 is `<img>`, 1 is `</img>` and 2 + k is code k."""
        codes = (visual_ids - 2).clamp(min=0)
        projected = self.projection(self.codebook[codes])
        if self.codes is not None:
            projected = projected + self.codes(codes)
        delimiters = self.delimiters(visual_ids.clamp(max=1))
        return torch.where((visual_ids < 2)[..., None], delimiters, projected)


class SeedInputEmbeddings(nn.Embedding):
    """
    The text model's embedding, with the same weight and name, that also embeds visual tokens. transformers and peft
    embed whole prompts with `get_input_embeddings()`. (peft's prompt tuning needs a table of `vocab_size` rows; the
    plain model of `merge_into_text_model` has one.)

    Args:
        words: the text model's own embedding.
        first_visual_id: id of `<img>`, the first visual token.
    """

    # The language model that has the visual embeddings; its `get_input_embeddings` sets it. It is neither a submodule
    # nor copied with the embedding, and None in an embedding that was copied without its model.
    model: weakref.ref | None = None

    def __init__(self, words: nn.Embedding, first_visual_id: int):
        super().__init__(*words.weight.shape, padding_idx=words.padding_idx, _weight=words.weight)
        self.weight = words.weight  # the same parameter, to which the head may be tied
        self.first_visual_id = first_visual_id

    def __getstate__(self) -> dict:
        return self.__dict__ | {"model": None}

    def forward(self, input_ids: torch.LongTensor, words_only: bool = False) -> torch.Tensor:
        """Embed words and visual tokens, `(...)` -> `(..., dim)`; `words_only` embeds visual tokens as token 0."""
        words = super().forward(input_ids.masked_fill(input_ids >= self.first_visual_id, 0))
        if words_only:
            return words
        model = self.model and self.model()
        if model is None:
            raise RuntimeError("This embedding has no model around it, whose visual embeddings it needs.")
        return model._put_visual_embeddings(input_ids, words)


__all__ = ["SeedInputEmbeddings", "SeedVisualEmbeddings", "VisualLinear"]
