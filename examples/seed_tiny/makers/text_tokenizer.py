"""The tokenizer of the text branch, made from captions since no pretrained one fits; and how tokenizers are kept."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

MADE_OF = "made_of.txt"  # a hash of what a tokenizer was trained on, beside it


def train_text_tokenizer(captions: Iterable[str], vocab_size: int) -> BertTokenizer:
    """
    A lower-casing WordPiece tokenizer, as BERT's, trained on captions.

    The letters and digits of ASCII are always in it, so that any English word has tokens. Pieces that are equally
    frequent are chosen differently from run to run (as the `tokenizers` library does), so keep what was made.
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
        folder: of the tokenizer.
        texts: what it is trained on. For other texts or another size a new one is trained.
        vocab_size: entries of the vocabulary.
        train: `train(texts, vocab_size)` makes a tokenizer.
        needed: keeps the old one also for other texts, since there are checkpoints that need it; `check_run` says
            whether they belong to this run.
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
