"""
Compare the perplexity of a causal language model on text with that of the text model it was made from.

The comparison shows whether a language model that learnt to read and draw pictures has become worse at text: both
models score the same words. The softmax runs over words only, also in SEED's models (their text mode), so that both
choose among the same tokens. The probability that SEED's models give to visual tokens inside text is reported apart.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..data.provenance import weight_hash
from .report import format_table, provenance, write_json, write_parquet

ALL = "all"


@dataclass
class TextSet:
    """
    The documents of a file.

    Args:
        path: a Parquet file, JSON lines, or plain text with a document on each line.
        texts: the documents.
        sources: the source of each document, from the column `source`; "all" without such a column.
    """

    path: str
    texts: list[str]
    sources: list[str]

    @classmethod
    def load(cls, path: str | Path, column: str = "text", limit: int | None = None, seed: int = 0) -> "TextSet":
        """
        Load a file of documents.

        Args:
            column: the column of a table that holds the documents.
            limit: number of documents to take, chosen at random by `seed`; None takes all.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not of the format that its suffix names, lacks the column, or holds no text.
        """
        rows = [row for row in _read_rows(Path(path), column) if row[0].strip()]
        if not rows:
            raise ValueError(f"{path} holds no text.")
        if limit is not None and limit < len(rows):
            chosen = np.random.default_rng(seed).choice(len(rows), limit, replace=False)
            rows = [rows[index] for index in sorted(chosen)]
        texts, sources = zip(*rows)
        return cls(str(path), list(texts), list(sources))


def _read_rows(path: Path, column: str) -> list[tuple[str, str]]:
    """Return pairs of text and source."""
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path).to_pylist()
        elif path.suffix in (".jsonl", ".json"):
            table = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            table = [{column: line} for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix or 'text'}: {error}") from error
    for number, row in enumerate(table):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{path}: row {number} has no text in column {column!r}; it has {found}.")
    return [(row[column], str(row.get("source", ALL))) for row in table]


class TextScorer:
    """
    The scorer of documents by their negative log-likelihoods under one model.

    Each document stands alone, after the tokenizer's beginning of sequence, which is not scored. A document longer than
    the context is read in windows that overlap by half: each token is scored once, with at least half a context before
    it.

    Args:
        model: a causal language model; a SEED model reads text only here.
        tokenizer: its text tokenizer.
        context: number of tokens in a window; None for the model's number of positions.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int | None = None):
        self.model, self.tokenizer = model.eval(), tokenizer
        config = model.config
        # SEED's models name their text vocabulary; other models may have rows that the tokenizer does not use (OPT).
        self.vocabulary = getattr(config, "text_vocab_size", min(len(tokenizer), config.vocab_size))
        positions = getattr(config, "max_position_embeddings", None) or 2048
        self.context = min(context or positions, positions)
        if self.context < 4:
            raise ValueError(f"The context is {self.context} tokens; expected at least 4.")
        self.start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if self.start is None:
            raise ValueError("The tokenizer has neither a bos_token nor an eos_token to begin a document with.")

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu", context: int | None = None) -> "TextScorer":
        """Load a model and its tokenizer from a folder or Hub id, in float32."""
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
        return cls(model, AutoTokenizer.from_pretrained(name), context)

    def score(self, texts: Sequence[str], batch_size: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Score texts.

        Returns:
            For each text the negative log-likelihood in nats, the number of tokens scored, and the sum over these
            tokens of the probability of visual tokens (0 for models without them), each `(texts,)`.

        Raises:
            ValueError: a text spells visual tokens (such as `<img>`).
        """
        windows = []
        for index, text in enumerate(texts):
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if max(ids, default=0) >= self.vocabulary:
                raise ValueError(f"Document {index} holds visual tokens; only text is scored here: {text[:80]!r}.")
            windows += [(index, *window) for window in self._windows([self.start, *ids])]
        windows.sort(key=lambda window: len(window[1]))
        nll, tokens, visual = (np.zeros(len(texts)) for _ in range(3))
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            for (index, ids, first), (losses, probabilities) in zip(batch, self._score_batch(batch)):
                nll[index] += losses.sum()
                visual[index] += probabilities.sum()
                tokens[index] += len(ids) - first
        return nll, tokens.astype(int), visual

    def _windows(self, ids: list[int]) -> Iterator[tuple[list[int], int]]:
        """Yield windows of ids, each with the position of the first id to score."""
        done = 1  # the beginning of sequence is given
        while done < len(ids):
            start = 0 if done == 1 else done - self.context // 2
            window = ids[start : start + self.context]
            yield window, done - start
            done = start + len(window)

    @torch.no_grad()
    def _score_batch(self, batch: list[tuple[int, list[int], int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each window the losses of its tokens from `first` on, and the probabilities of visual tokens."""
        length = max(len(ids) for _, ids, _ in batch)
        device = self.model.device
        input_ids = torch.tensor([ids + [self.start] * (length - len(ids)) for _, ids, _ in batch], device=device)
        mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for _, ids, _ in batch], device=device)
        logits = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        words = logits[..., : self.vocabulary]
        losses = torch.nn.functional.cross_entropy(words.transpose(1, 2), input_ids[:, 1:], reduction="none").double()
        if hasattr(self.model.config, "text_vocab_size"):
            share = logits[..., self.vocabulary :].logsumexp(-1).sub(logits.logsumexp(-1)).exp().double()
        else:
            share = torch.zeros_like(losses)
        spans = [slice(first - 1, len(ids) - 1) for _, ids, first in batch]
        return [(losses[row, span].cpu().numpy(), share[row, span].cpu().numpy()) for row, span in enumerate(spans)]


def evaluate_text(
    data: TextSet,
    output: str | Path,
    model: str | Path,
    base: str | Path | None = None,
    batch_size: int = 16,
    context: int | None = None,
    device: str = "cpu",
) -> dict:
    """
    Score `data` by `model`, and by `base` if there is one, and print a table.

    Args:
        output: folder for `text.json` and `text_predictions.parquet`.
        model, base: folders or Hub ids; `base` is the text model that `model` was made from.

    Returns:
        The content of `text.json`.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    names = {"model": model} | ({"base": base} if base else {})
    rows = [
        {"source": source, "text": text, "bytes": len(text.encode()), "words": len(text.split())}
        for text, source in zip(data.texts, data.sources)
    ]
    report = {"data": data.path, "documents": len(rows), **provenance(), "models": {}, "metrics": {}}
    for label, name in names.items():
        scorer = TextScorer.from_pretrained(name, device, context)
        report["models"][label] = {
            "name": str(name),
            "sha256": weight_hash(scorer.model),
            "context": scorer.context,
            "dtype": "float32",
        }
        for row, nll, tokens, visual in zip(rows, *scorer.score(data.texts, batch_size)):
            row |= {f"{label}_nll": float(nll), f"{label}_tokens": int(tokens), f"{label}_visual": float(visual)}
        del scorer
    for source in [ALL, *sorted(set(data.sources) - {ALL})]:
        part = [row for row in rows if source in (ALL, row["source"])]
        report["metrics"][source] = {label: summarize(part, label) for label in names}
    write_json(output / "text.json", report)
    write_parquet(output / "text_predictions.parquet", rows)
    print(format_report(report))
    return report


def summarize(rows: Sequence[dict], label: str) -> dict[str, float]:
    """
    Return the perplexity per token and per word (words are split at blanks), the bits per byte of UTF-8, and the mean
    probability of visual tokens in the place of words. Sums over all documents are divided, so that long ones count for
    more.
    """
    nll, tokens = (sum(row[f"{label}_{key}"] for row in rows) for key in ("nll", "tokens"))
    return {
        "documents": len(rows),
        "tokens": tokens,
        "token_perplexity": math.exp(nll / tokens),
        "word_perplexity": _bounded_exp(nll / sum(row["words"] for row in rows)),
        "bits_per_byte": nll / math.log(2) / sum(row["bytes"] for row in rows),
        "visual_probability": sum(row[f"{label}_visual"] for row in rows) / tokens,
    }


def _bounded_exp(value: float) -> float | None:
    """Return the exponential, or None if a float cannot hold it (after a word of hundreds of tokens)."""
    return math.exp(value) if value < 700 else None


def format_report(report: dict) -> str:
    """Return the table as text; the rows "change, %" give the change in bits per byte from the base model."""
    header = ["source", "model", "documents", "tokens", "per token", "per word", "bits per byte", "visual prob."]
    rows = []
    for source, metrics in report["metrics"].items():
        for label, values in metrics.items():
            rows.append([source, label, *values.values()])
            if label == "base":
                change = 100 * (metrics["model"]["bits_per_byte"] / values["bits_per_byte"] - 1)
                rows.append([source, "change, %", None, None, None, None, change, None])
    return format_table(header, rows)


__all__ = ["TextScorer", "TextSet", "evaluate_text", "format_report", "summarize"]
