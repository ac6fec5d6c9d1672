"""A small OPT and its tokenizer, trained from scratch on a text corpus: a language model to make SEED from.

The paper starts from OPT-2.7B instead. Sizes and mixture are our choice, for a model that a CPU can train.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset
from transformers import GPT2Tokenizer, OPTConfig, PreTrainedTokenizerBase

from seed.training.recipes import build_recipe, check_recipe_keys, check_training, read_yaml

TOKENIZER_BATCH = 4096  # documents tokenized at once


@dataclass
class TextModelRecipe:
    """
    The recipe of the text model.

    Args:
        vocab_size: the size of the tokenizer's vocabulary, `</s>` and `<pad>` included.
        block_length: tokens in a training sequence, at most the model's positions; positions beyond it stay untrained.
        epochs: passes over the mixture.
        weights: how often a document of each source comes in an epoch. A source without a weight has 1; with 0.5, every
            second document comes.
        model: arguments of `OPTConfig` that differ from its defaults.
        training: arguments of transformers' `TrainingArguments`, and `bf16: auto` (see [`training_arguments`]).
    """

    vocab_size: int
    block_length: int
    epochs: float
    training: dict[str, Any]
    weights: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def load_text_model_recipe(path: str | Path) -> TextModelRecipe:
    """
    Read and check a recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a mapping, has an unknown key or lacks one, or blocks exceed the model's positions.
    """
    values = read_yaml(path)
    recipe = build_recipe(TextModelRecipe, values, str(path))
    check_recipe_keys(recipe.model, OPTConfig, f"{path}: model")
    check_training(recipe, path)
    positions = OPTConfig(**recipe.model).max_position_embeddings
    if recipe.block_length > positions:
        raise ValueError(
            f"{path}: block_length is {recipe.block_length}, but the model has {positions} positions; "
            "make the blocks shorter or raise max_position_embeddings."
        )
    return recipe


def read_mixture(path: str | Path, weights: Mapping[str, float], seed: int = 0) -> list[str]:
    """
    Return the texts of a Parquet file, repeated or thinned out by the weights of their sources, and shuffled.

    The file has the column `text` and, where there are weights, `source`. The texts are the same in every run. Rows
    without words are left out.

    Raises:
        ValueError: a column is missing, a weight names no source, or there is no text.
    """
    columns = pq.read_schema(path).names
    missing = {"text", *(["source"] if weights else [])} - set(columns)
    if missing:
        raise ValueError(f"{path} has the columns {columns}; {sorted(missing)} is missing.")
    table = pq.read_table(path)
    texts = table["text"].to_pylist()
    sources = table["source"].to_pylist() if "source" in columns else [None] * len(texts)
    unknown = sorted(weights.keys() - set(sources))
    if unknown:
        raise ValueError(
            f"The recipe weighs {unknown}, but {path} has the sources {sorted(set(sources), key=str)}: change the "
            "recipe's `weights`, or leave them out to take all texts once."
        )
    rng = random.Random(seed)
    mixture = []
    for text, source in zip(texts, sources):
        if not text or not text.strip():
            continue
        times, rest = divmod(weights.get(source, 1.0), 1)
        mixture += [text] * (int(times) + (rng.random() < rest))
    if not mixture:
        raise ValueError(f"{path} holds no text to train on.")
    rng.shuffle(mixture)
    return mixture


def train_byte_level_tokenizer(texts: Iterable[str], vocab_size: int) -> GPT2Tokenizer:
    """
    Return a byte-level BPE tokenizer like OPT's, trained on the texts.

    `</s>` (id 0) begins and ends texts, and the tokenizer puts it before every text; `<pad>` is id 1. It can write any
    string.

    Raises:
        ValueError: vocab_size is too small for the 256 bytes and two special tokens.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least 258 entries.")
    empty = GPT2Tokenizer(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True)
    tokenizer = empty.train_new_from_iterator(_batches(texts), vocab_size=vocab_size, show_progress=False)
    tokenizer.padding_side = "left"  # generation needs this; training pads nothing
    return tokenizer


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch = []
    for text in texts:
        batch.append(text)
        if len(batch) == TOKENIZER_BATCH:
            yield batch
            batch = []
    yield batch


class TextBlocks(Dataset):
    """
    Documents one after the other, each begun by `</s>`, cut into blocks of equal length.

    As in GPT's training, a document may continue in the next block, and it attends to what stands before it in its
    block. So every position of a block meets every kind of text. What is left after the last whole block is dropped.

    Args:
        texts: the documents, in order.
        tokenizer: the tokenizer, which puts `</s>` before each document.
        block_length: tokens in a block.

    Raises:
        ValueError: the texts fill no block.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_length: int):
        ids = [
            np.fromiter((token for row in tokenizer(batch)["input_ids"] for token in row), dtype=np.int32)
            for batch in _batches(texts)
            if batch
        ]
        tokens = np.concatenate(ids)
        count = len(tokens) // block_length
        if not count:
            raise ValueError(f"{len(tokens)} tokens of text fill no block of {block_length}.")
        self.blocks = tokens[: count * block_length].reshape(count, block_length)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block = torch.from_numpy(self.blocks[index].astype(np.int64))
        return {"input_ids": block, "labels": block}


def text_model_config(recipe: TextModelRecipe, tokenizer: PreTrainedTokenizerBase) -> OPTConfig:
    """Return the configuration of the new model; the tokenizer gives the vocabulary and the special ids."""
    return OPTConfig(
        **{
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | recipe.model
    )


__all__ = [
    "TextBlocks",
    "TextModelRecipe",
    "load_text_model_recipe",
    "read_mixture",
    "text_model_config",
    "train_byte_level_tokenizer",
]
