"""A small OPT and its tokenizer, trained from scratch on a text corpus: a language model to make SEED from.

No paper's recipe: SEED starts from OPT-2.7B. Sizes and the mixture are our choice for a model that fits on a CPU.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from torch.utils.data import Dataset
from transformers import GPT2Tokenizer, OPTConfig, PreTrainedTokenizerBase, TrainingArguments

from .datasets import permutation
from .packing import IGNORED
from .recipes import build_recipe, check_recipe_keys

TOKENIZER_BATCH = 4096  # documents tokenized at once


@dataclass
class TextModelRecipe:
    """
    Args:
        block_length: tokens to a training sequence. At most the model's positions; positions beyond it stay untrained.
        epochs: passes over the mixture.
        training: keyword arguments of transformers' `TrainingArguments`.
        vocab_size: of a new model's tokenizer, `</s>` and `<pad>` included.
        model: overrides of `OPTConfig`, for a new model.
        weights: how often a document of a source comes per epoch (1 where not named; 0.5: every second one).
        bag_length: words before each document, see [`WordBags`]; 0 trains on [`TextBlocks`].
    """

    block_length: int
    epochs: float
    training: dict[str, Any]
    vocab_size: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    bag_length: int = 0


def load_text_model_recipe(path: str | Path) -> TextModelRecipe:
    """
    Raises:
        FileNotFoundError: no such file.
        ValueError: not a mapping, an unknown or a missing key, or blocks longer than the model's positions.
    """
    values = yaml.safe_load(Path(path).read_text())
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path} is not a mapping of keys to values.")
    recipe = build_recipe(TextModelRecipe, values, str(path))
    check_recipe_keys(recipe.model, OPTConfig, f"{path}: model")
    check_recipe_keys(recipe.training, TrainingArguments, f"{path}: training")
    if recipe.vocab_size is not None:
        check_block_length(recipe, OPTConfig(**recipe.model))
    return recipe


def check_block_length(recipe: TextModelRecipe, config: OPTConfig) -> None:
    """
    Raises:
        ValueError: blocks are longer than the model's positions.
    """
    if recipe.block_length > config.max_position_embeddings:
        raise ValueError(
            f"block_length is {recipe.block_length}, but the model has {config.max_position_embeddings} positions; "
            "make the blocks shorter or raise max_position_embeddings."
        )


def read_mixture(path: str | Path, weights: Mapping[str, float], seed: int = 0) -> list[str]:
    """
    The texts of a Parquet file (columns `text` and, where there are weights, `source`), repeated and thinned out by
    the weights of their sources and shuffled; the same in every run.

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
        raise ValueError(f"The recipe weighs {unknown}, but {path} has the sources {sorted(set(sources))}.")
    rng = random.Random(seed)
    mixture = []
    for text, source in zip(texts, sources):
        times, rest = divmod(weights.get(source, 1.0), 1)
        mixture += [text] * (int(times) + (rng.random() < rest))
    if not mixture:
        raise ValueError(f"{path} holds no text to train on.")
    rng.shuffle(mixture)
    return mixture


def train_byte_level_tokenizer(texts: Iterable[str], vocab_size: int) -> GPT2Tokenizer:
    """
    A byte-level BPE tokenizer as OPT's: `</s>` (id 0) begins and ends texts, and is put before every one; `<pad>` is
    id 1. Any string can be written with it.

    Raises:
        ValueError: vocab_size is too small for the 256 bytes and two special tokens.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least 258 entries.")
    empty = GPT2Tokenizer(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>", add_bos_token=True)
    tokenizer = empty.train_new_from_iterator(_batches(texts), vocab_size=vocab_size, show_progress=False)
    tokenizer.padding_side = "left"  # batches are for generation; training pads nothing
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

    A document may go on in the next block, and one sees what stands before it in its block, as in GPT's training: so
    every position of a block meets every kind of text. The rest after the last whole block is dropped.

    Args:
        texts: the documents, in order.
        tokenizer: puts `</s>` before each.
        block_length: tokens to a block.

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


class WordBags(Dataset):
    """
    Documents, each after a bag of words: tokens of its own in any order among tokens of others, as an image's codes
    stand before its caption. To write the document the model has to read what stands before `</s>`, which plain text
    never asks of it (our choice). The loss is on the document alone.

    What stands at a position depends on the seed and the position only. Of a bag 0.2 to 0.9 are the document's own,
    rare tokens more often than common ones (by the root of their frequency). Every fifth document comes without a bag,
    so that the model keeps its prose. What does not fit is cut off.

    Args:
        texts: the documents; every epoch takes them in another order.
        tokenizer: puts `</s>` before each.
        bag_length: tokens to a bag.
        max_length: tokens to an example.
        seed: of the order and of all draws.

    Raises:
        ValueError: a bag leaves no room for the document.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, bag_length: int, max_length: int, seed: int = 0
    ):
        if bag_length + 2 > max_length:
            raise ValueError(
                f"bag_length is {bag_length}, which leaves no room for a document in {max_length} tokens; make bags "
                "shorter or block_length longer."
            )
        self.bag_length, self.max_length, self.seed = bag_length, max_length, seed
        self.end = tokenizer.eos_token_id
        self.documents = [
            np.array(row, dtype=np.int32) for batch in _batches(texts) if batch for row in tokenizer(batch)["input_ids"]
        ]
        counts = np.bincount(np.concatenate(self.documents), minlength=len(tokenizer)).astype(float)
        counts[tokenizer.all_special_ids] = 0
        self.rarity = np.divide(1, np.sqrt(counts), out=np.zeros_like(counts), where=counts > 0)
        self.others = np.cumsum(counts * self.rarity)
        self.examples = len(self.documents)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, position: int) -> dict[str, Any]:
        """`{"input_ids": list[int], "labels": list[int]}`."""
        epoch, place = divmod(position, len(self.documents))
        number = permutation(len(self.documents), self.seed, epoch)[place]
        rng = np.random.default_rng((self.seed, 1, position))
        document = self.documents[number]
        weights = self.rarity[document].cumsum()
        bag = []
        if rng.random() >= 0.2 and weights[-1]:
            own = rng.random(self.bag_length) < rng.uniform(0.2, 0.9)
            draws = rng.random(self.bag_length)
            mine = document[np.searchsorted(weights, draws * weights[-1], side="right")]
            other = np.searchsorted(self.others, draws * self.others[-1], side="right")
            bag = np.where(own, mine, other).tolist()
        ids = [*bag, *document.tolist(), self.end][: self.max_length]
        # Nor on what begins the document, of which the bag says nothing.
        return {"input_ids": ids, "labels": [IGNORED] * (len(bag) + 1) + ids[len(bag) + 1 :]}


def text_model_config(recipe: TextModelRecipe, tokenizer: PreTrainedTokenizerBase) -> OPTConfig:
    """The configuration of the new model; the tokenizer gives the vocabulary and the special ids."""
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
    "WordBags",
    "check_block_length",
    "load_text_model_recipe",
    "read_mixture",
    "text_model_config",
    "train_byte_level_tokenizer",
]
