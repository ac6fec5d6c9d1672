"""The tokenizer of the text branch, trained on captions because no pretrained one fits, and how it is kept."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

MADE_OF = "made_of.txt"  # the file in a tokenizer's folder that holds a hash of what it was trained on


def train_text_tokenizer(captions: Iterable[str], vocab_size: int) -> BertTokenizer:
    """
    Return a lower-casing WordPiece tokenizer like BERT's, trained on captions.

    It always has the letters and digits of ASCII, so that any English word has tokens. The `tokenizers` library chooses
    equally frequent pieces differently from run to run, so keep what was made.
    """
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    # Each letter alone and inside a word: both kinds of piece enter the vocabulary.
    letters = [[letter, "x" + letter] for letter in alphabet]
    texts = ([caption] for caption in captions)
    tokenizer = BertTokenizer().train_new_from_iterator(_chain(letters, texts), vocab_size=vocab_size)
    tokenizer.model_max_length = 512
    return tokenizer


def _chain(*parts: Iterable[list[str]]) -> Iterable[list[str]]:
    for part in parts:
        yield from part


def kept_tokenizer(
    folder: Path,
    texts: Sequence[str],
    vocab_size: int,
    train: Callable[[Sequence[str], int], PreTrainedTokenizerBase],
    needed: bool = False,
) -> PreTrainedTokenizerBase:
    """
    Return the tokenizer that an earlier start of a run left in `folder`, or train a new one and leave it there.

    Pieces that are equally frequent are chosen differently each time, and a run that resumes needs its own tokenizer.

    Args:
        folder: the tokenizer's folder.
        texts: the texts to train on. A new tokenizer is trained for other texts or another size.
        vocab_size: the number of entries of the vocabulary.
        train: the function that trains a tokenizer, called as `train(texts, vocab_size)`.
        needed: keeps the old tokenizer for other texts as well, because there are checkpoints that need it; `check_run`
            then says whether they belong to this run.
    """
    digest = hashlib.sha256(str(vocab_size).encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    memory = folder / MADE_OF
    same = memory.is_file() and memory.read_text() == digest.hexdigest()
    if not same and not (needed and folder.is_dir()):
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        train(texts, vocab_size).save_pretrained(partial)
        (partial / MADE_OF).write_text(digest.hexdigest())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return AutoTokenizer.from_pretrained(folder)


__all__ = ["kept_tokenizer", "train_text_tokenizer"]
