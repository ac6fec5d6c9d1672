"""Features of texts by an image tokenizer's text branch, which pictures and codes are compared with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ..configuration_seed import SeedConfig
from ..modeling_seed import SeedModel

# Longer texts are cut, as in training (BLIP-2's max_txt_len).
MAX_TEXT_LENGTH = 32


def load_text_tokenizer(folder: str | Path, config: SeedConfig):
    """
    Load the text tokenizer of an image tokenizer's text branch.

    Args:
        folder: the folder of the image tokenizer.
        config: the configuration of the image tokenizer.

    Raises:
        FileNotFoundError: the folder holds no text tokenizer.
        ValueError: the image tokenizer has no text branch.
    """
    if not config.use_text_branch:
        raise ValueError(
            f"{folder} has no text branch, which texts are compared with. Make it again with one: `seed convert "
            "seed1` takes it from the checkpoint if that holds one. (Captions alone need none: leave --train-data out.)"
        )
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{folder} has no text tokenizer, which its text branch needs. Save it there; the one of the released SEED "
            "is bert-base-uncased with the added token [DEC] (`seed convert seed1 --text-tokenizer`)."
        ) from error


@torch.no_grad()
def encode_texts(model: SeedModel, text_tokenizer, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    """
    Return L2-normalised features of texts, `(texts, projection_dim)`, on the CPU.

    Args:
        model: an image tokenizer with a text branch.
        text_tokenizer: the tokenizer of that branch, see [`load_text_tokenizer`].
        texts: the texts, which are cut to 32 tokens.
        batch_size: the number of texts that are encoded at a time.
    """
    length = min(MAX_TEXT_LENGTH, model.config.qformer_config.max_position_embeddings)
    parts = []
    for start in range(0, len(texts), batch_size):
        inputs = text_tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(model.device)
        parts.append(model.get_text_features(inputs.input_ids, inputs.attention_mask).cpu())
    return torch.cat(parts)


__all__ = ["encode_texts", "load_text_tokenizer"]
