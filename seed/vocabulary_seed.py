"""The vocabulary of words and visual tokens: it maps codes to token ids and back, and finds images among the ids."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AddedToken, PreTrainedTokenizerBase

# Stands for an image in a text.
IMAGE_PLACEHOLDER = "<image>"
BOI_TOKEN, EOI_TOKEN, CODE_TOKEN = "<img>", "</img>", "<img_{:05d}>"


class SeedVocabularyMixin:
    """
    The part of [`SeedProcessor`] that maps codes to token ids and back. Nothing else does.

    It needs `tokenizer`, `boi_token_id`, `eoi_token_id`, `first_code_token_id`, `num_codes` and `codebook_size`.
    """

    @staticmethod
    def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> PreTrainedTokenizerBase:
        """
        Add `<img>`, `</img>` and a token per code after the text vocabulary, in place, unless they are there already.

        Raises:
            ValueError: the tokenizer has some of them already, elsewhere.
        """
        # They are not "special" tokens, because those vanish when text is decoded, and the images would with them.
        tokens = [AddedToken(token, special=False, normalized=False) for token in _visual_tokens(codebook_size)]
        tokenizer.add_tokens(tokens)
        check_visual_tokens(tokenizer, codebook_size)
        return tokenizer

    def codes_to_ids(self, codes: torch.LongTensor) -> torch.LongTensor:
        """
        Map codes to token ids, of any shape.

        Raises:
            TypeError: the codes are no integers.
            ValueError: a code is outside of 0 .. codebook_size - 1.
        """
        codes = _integers(codes, "codes")
        _check_range(codes, 0, self.codebook_size, "Code", f"this codebook has codes 0 .. {self.codebook_size - 1}")
        return codes + self.first_code_token_id

    def ids_to_codes(self, ids: torch.LongTensor) -> torch.LongTensor:
        """
        Map token ids to codes, of any shape.

        Raises:
            TypeError: the ids are no integers.
            ValueError: an id is not that of a code.
        """
        ids, first = _integers(ids, "ids"), self.first_code_token_id
        last = first + self.codebook_size - 1
        _check_range(ids, first, last + 1, "Token id", f"codes have the ids {first} .. {last}")
        return ids - first

    def image_ids(self, codes) -> list[int]:
        """Return the ids of `<img> codes </img>` for the codes of one image, `(num_codes,)`."""
        codes = _integers(codes, "codes")
        if codes.shape != (self.num_codes,):
            raise ValueError(f"codes of one image have shape {tuple(codes.shape)}; expected ({self.num_codes},).")
        return [self.boi_token_id, *self.codes_to_ids(codes).tolist(), self.eoi_token_id]

    def encode_words(self, text: str, special_tokens: bool = False) -> list[int]:
        """
        Return the ids of a text that holds words only.

        Args:
            special_tokens: read "</s>" and the like as tokens, as a chat template means them. Otherwise they are words
                that somebody wrote.

        Raises:
            ValueError: the text spells visual tokens, which would forge an image.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special_tokens)
        if ids and max(ids) >= self.boi_token_id:
            raise ValueError(
                f"The text {_shorten(text)!r} spells visual tokens such as '<img>' or '<img_00000>'. Remove them, or "
                "give the image as codes."
            )
        return ids

    def split_images(self, ids: Sequence[int], allow_incomplete: bool = False) -> list[tuple[str, list[int]]]:
        """
        Split token ids into `("words", ids)` and `("image", codes)`, in order.

        A sequence that begins with a code continues a prompt that ended with `<img>`.

        Raises:
            ValueError: an image is cut short (unless `allow_incomplete`), or visual tokens are out of place.
        """
        boi, eoi, first = self.boi_token_id, self.eoi_token_id, self.first_code_token_id
        parts, position, ids = [], 0, [int(token) for token in ids]
        while position < len(ids):
            start = position
            if ids[start] < boi:
                while position < len(ids) and ids[position] < boi:
                    position += 1
                parts.append(("words", ids[start:position]))
                continue
            if ids[start] == eoi or (ids[start] >= first and start > 0):
                name = "</img>" if ids[start] == eoi else f"code {ids[start] - first}"
                raise ValueError(f"Token {start} is {name} outside of an image: was the sequence cut at its beginning?")
            position += ids[start] == boi
            codes_start = position
            while position < len(ids) and ids[position] >= first:
                position += 1
            codes = [token - first for token in ids[codes_start:position]]
            closed = position < len(ids) and ids[position] == eoi
            # An image at the very end may lack its </img>, which says nothing new.
            whole = len(codes) == self.num_codes and (closed or position == len(ids))
            if not whole and not allow_incomplete:
                raise ValueError(
                    f"The image at token {start} is cut short: it has {len(codes)} of {self.num_codes} codes. Generate "
                    "with a larger max_new_tokens, or pass allow_incomplete=True to get what there is."
                    if len(codes) <= self.num_codes
                    else f"The image at token {start} has {len(codes)} codes; expected {self.num_codes}."
                )
            parts.append(("image", codes))
            position += closed
        return parts

    def image_codes(self, ids) -> torch.LongTensor:
        """
        Return the codes of the last image of each row: `(batch, length)` -> `(batch, num_codes)`.

        Raises:
            ValueError: a row has no image, or one that is cut short or misplaced.
        """
        images = [[part for kind, part in self.split_images(row) if kind == "image"] for row in id_rows(ids)]
        if not all(images):
            raise ValueError(f"Row {[bool(found) for found in images].index(False)} has no image.")
        return torch.tensor([found[-1] for found in images])


def _visual_tokens(codebook_size: int) -> list[str]:
    return [BOI_TOKEN, EOI_TOKEN, *(CODE_TOKEN.format(code) for code in range(codebook_size))]


def check_visual_tokens(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> int:
    """
    Check that the tokenizer's last ids are `<img>`, `</img>` and the codes, in this order. Return the id of `<img>`.

    Raises:
        ValueError: a visual token is missing, or has another id.
    """
    vocabulary, wanted = tokenizer.get_vocab(), _visual_tokens(codebook_size)
    missing = next((token for token in wanted if token not in vocabulary), None)
    if missing is not None:
        raise ValueError(
            f"The tokenizer has no token {missing}; a codebook of {codebook_size} codes needs <img>, </img> and "
            f"{wanted[2]} ... {wanted[-1]}: call SeedProcessor.extend_tokenizer(tokenizer, codebook_size) on the text "
            "model's own tokenizer."
        )
    first = len(tokenizer) - len(wanted)
    for place, token in enumerate(wanted):
        if vocabulary[token] != first + place:
            raise ValueError(
                f"The tokenizer's {token} has the id {vocabulary[token]}; expected {first + place}, because the last "
                f"{len(wanted)} of its {len(tokenizer)} ids must be <img>, </img> and the {codebook_size} codes, in "
                "order. Extend the text model's own tokenizer afresh, with the image tokenizer's codebook_size."
            )
    return first


def check_placeholders(texts: list[str], images, num_images: int, are_codes: bool) -> None:
    """
    Check that every text has as many placeholders as it was given images.

    Args:
        images: the images or their codes, as the caller gave them.
        num_images: how many these are.
        are_codes: `images` are codes.

    Raises:
        ValueError: the numbers differ, all together or for one text.
    """
    wanted = [sample.count(IMAGE_PLACEHOLDER) for sample in texts]
    if sum(wanted) != num_images:
        raise ValueError(
            f"The text has {sum(wanted)} {IMAGE_PLACEHOLDER} placeholders for {num_images} images (or their codes); "
            "write one placeholder where each image belongs."
        )
    # Lists among the images say which of them belong to which text. A lone image among lists counts as one.
    if isinstance(images, (list, tuple)) and any(_holds_images(group, are_codes) for group in images):
        given = [len(group) if _holds_images(group, are_codes) else 1 for group in images]
        if given != wanted:
            raise ValueError(
                f"The texts have {wanted} {IMAGE_PLACEHOLDER} placeholders, but {given} images (or codes of images)."
            )


def _holds_images(group, are_codes: bool) -> bool:
    """Return whether this is a list of images or of codes, and not the codes or pixels of one image."""
    if hasattr(group, "ndim"):
        return group.ndim == (2 if are_codes else 4)
    return isinstance(group, (list, tuple)) and not (are_codes and group and _is_number(group[0]))


def _is_number(value) -> bool:
    return not isinstance(value, (list, tuple)) and getattr(value, "ndim", 0) == 0


def flatten_codes(codes) -> list:
    """
    Return one entry per image, from a tensor, an array, or lists of any depth.

    What an entry holds is checked when it becomes ids.
    """
    if hasattr(codes, "ndim"):
        return [codes] if codes.ndim == 1 else list(codes.reshape(-1, codes.shape[-1]))
    if len(codes) and _is_number(codes[0]):
        return [codes]
    return [row for part in codes for row in flatten_codes(part)]


def id_rows(ids) -> list[list[int]]:
    """Return token ids row by row, from a tensor or lists, `(batch, length)` or `(length,)`."""
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if ids and not isinstance(ids[0], (list, tuple)) and not hasattr(ids[0], "tolist"):
        ids = [ids]
    return [row.tolist() if hasattr(row, "tolist") else list(row) for row in ids]


def _integers(values, name: str) -> torch.LongTensor:
    values = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{name} have dtype {values.dtype}; expected integers.")
    return values.long()


def _check_range(values: torch.Tensor, low: int, high: int, name: str, expected: str) -> None:
    wrong = values[(values < low) | (values >= high)]
    if len(wrong):
        raise ValueError(f"{name} {int(wrong[0])} is out of range; {expected}.")


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length] + "..."


__all__ = [
    "IMAGE_PLACEHOLDER",
    "SeedVocabularyMixin",
    "check_placeholders",
    "check_visual_tokens",
    "flatten_codes",
    "id_rows",
]
