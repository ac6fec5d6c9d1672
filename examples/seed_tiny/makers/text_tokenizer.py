"""The text branch's tokenizer, made from captions where no pretrained one fits a small model."""

from collections.abc import Iterable

from transformers import BertTokenizer


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
