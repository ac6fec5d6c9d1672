"""Make batches of sequences: packed, several to a row, or padded, one to a row. No sequence sees another."""

import heapq
from collections.abc import Sequence

import torch

from ..sequences_seed import IGNORED

# `pack` tries up to this many rows more than needed: among few rows, one that is too long causes much padding.
EXTRA_ROWS = 16


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """
    Put sequences into rows so that little padding is left.

    First-fit decreasing finds how few rows suffice. A batch is as wide as its longest row, so the sequences are then
    dealt out evenly, the longest first, to that many rows, to a few more, and to as many as hold equally many
    sequences; the choice with the least padding is taken. The result depends on the lengths alone.

    Args:
        lengths: number of tokens of each sequence.
        capacity: number of tokens that fit into a row.

    Returns:
        For each row the numbers of its sequences, in ascending order.

    Raises:
        ValueError: a sequence is longer than a row; the message names it.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    if not order:
        return []
    if lengths[order[0]] > capacity:
        raise ValueError(f"Sequence {order[0]} has {lengths[order[0]]} tokens; a row takes {capacity}.")
    best = _first_fit(order, lengths, capacity)
    best_area = _area(best, lengths)
    least = len(best)
    few_more = range(least, min(least + EXTRA_ROWS, len(order)) + 1)
    equally_many = (-(-len(order) // each) for each in range(1, len(order) // least + 1))
    for count in sorted({*few_more, *equally_many}):
        rows = _deal(order, lengths, count)
        area = _area(rows, lengths)
        if area < best_area and area <= count * capacity:
            best, best_area = rows, area
    return [sorted(row) for row in best]


def _first_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    filled: list[int] = []
    for number in order:
        row = next((row for row, used in enumerate(filled) if used + lengths[number] <= capacity), len(rows))
        if row == len(rows):
            rows.append([])
            filled.append(0)
        rows[row].append(number)
        filled[row] += lengths[number]
    return rows


def _deal(order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Give each sequence in turn to the emptiest of `count` rows."""
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, row) for row in range(count)]
    for number in order:
        used, row = heapq.heappop(heap)
        rows[row].append(number)
        heapq.heappush(heap, (used + lengths[number], row))
    return rows


def _area(rows: list[list[int]], lengths: Sequence[int]) -> int:
    return len(rows) * max(sum(lengths[number] for number in row) for row in rows)


class PackingCollator:
    """
    Collator that packs examples into rows.

    Positions restart at 0 with every example, and the mask is block-diagonal and causal: OPT derives neither from the
    other. The first label of an example is dropped, because the model would predict it from the example before.

    A batch has as many rows as its examples need, so `per_device_train_batch_size` counts examples.

    Args:
        pad_token_id: id of the token that fills rows up to the longest.
        capacity: number of tokens in a row. The length of the model's context is a sensible choice; less saves
            attention.
        mask_dtype: `torch.bool` (True: attend) for "sdpa"; a floating dtype gives an additive mask, which "eager"
            attention needs.
    """

    def __init__(self, pad_token_id: int, capacity: int, mask_dtype: torch.dtype = torch.bool):
        self.pad_token_id = pad_token_id
        self.capacity = capacity
        self.mask_dtype = mask_dtype

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """
        Pack a batch.

        Args:
            examples: `{"input_ids": list[int], "labels": list[int]}`, and optionally `name`, for error messages.

        Returns:
            `input_ids`, `labels` (-100: no loss), `position_ids`, `(rows, length)`; `attention_mask`
            `(rows, 1, length, length)`.

        Raises:
            ValueError: an example is longer than a row; the message names it.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        for number, length in enumerate(lengths):
            if length > self.capacity:
                name = examples[number].get("name", f"number {number} of its batch")
                raise ValueError(
                    f"The example {name} has {length} tokens, but a row takes {self.capacity}. Raise the recipe's "
                    "capacity, or shorten or leave out the example."
                )
        rows = pack(lengths, self.capacity)
        width = max(sum(lengths[number] for number in row) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full_like(input_ids, IGNORED)
        position_ids = torch.zeros_like(input_ids)
        segments = torch.full_like(input_ids, -1)  # the padding is a segment too: a row without any key gives NaN
        for row, numbers in enumerate(rows):
            start = 0
            for number in numbers:
                place = slice(start, start + lengths[number])
                input_ids[row, place] = torch.tensor(examples[number]["input_ids"])
                labels[row, place] = torch.tensor(examples[number]["labels"])
                labels[row, start] = IGNORED
                position_ids[row, place] = torch.arange(lengths[number])
                segments[row, place] = number
                start = place.stop
        same = segments[:, None, :, None] == segments[:, None, None, :]
        mask = same & torch.ones(width, width, dtype=torch.bool).tril()
        if self.mask_dtype != torch.bool:
            mask = torch.zeros(mask.shape, dtype=self.mask_dtype).masked_fill(~mask, torch.finfo(self.mask_dtype).min)
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, "attention_mask": mask}


class PaddingCollator:
    """
    Collator that gives each example a row, padded on the right to the longest: packing is measured against it.

    Args:
        pad_token_id: id of the token that pads.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Pad a batch; in contrast to [`PackingCollator`], `attention_mask` is `(rows, length)`, without positions."""
        width = max(len(example["input_ids"]) for example in examples)
        batch = {"input_ids": [], "labels": [], "attention_mask": []}
        for example in examples:
            gap = width - len(example["input_ids"])
            batch["input_ids"].append(example["input_ids"] + [self.pad_token_id] * gap)
            batch["labels"].append(example["labels"] + [IGNORED] * gap)
            batch["attention_mask"].append([1] * (width - gap) + [0] * gap)
        return {name: torch.tensor(values) for name, values in batch.items()}


__all__ = ["PackingCollator", "PaddingCollator", "pack"]
