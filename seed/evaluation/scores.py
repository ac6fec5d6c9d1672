"""Load the package's `evaluate` metrics, and compute the scores that the language tasks share."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from .metrics import bootstrap_interval

FOLDER = Path(__file__).parent / "hub_metrics"


@cache
def load_metric(name: str):
    """
    Load an `evaluate.Metric` from its folder in `hub_metrics`; nothing is downloaded.

    Raises:
        ModuleNotFoundError: `evaluate`, or a package that the metric needs, is not installed.
    """
    try:
        import evaluate

        return evaluate.load(str(FOLDER / name), keep_in_memory=True)
    except ImportError as error:
        raise ModuleNotFoundError(
            f'The metric {name} cannot be loaded ({error}): run `pip install "seed-vision[eval]"`.'
        ) from error


def load_metrics(*names: str) -> None:
    """Load metrics before the work that they score, which would be lost if one could not be loaded afterwards."""
    for name in names:
        load_metric(name)


def score_captions(captions: Sequence[str], references: list[list[str]], names: list[list[str]], seed: int) -> dict:
    """
    Score one caption for each picture by COCO's metrics and exact-name accuracy.

    Returns:
        The metrics' own results; `cider_95%` and `name_accuracy_95%` (bootstrap over pictures, with CIDEr's document
        frequencies of the whole split); and for each picture `cider_each` and `each_is_a_name`.
    """
    coco = load_metric("coco_captions").compute(predictions=list(captions), references=references, per_caption=True)
    named = load_metric("name_accuracy").compute(predictions=list(captions), references=names, per_example=True)
    coco.pop("rouge_l_each")
    return coco | {
        "cider_95%": mean_interval(coco["cider_each"], seed),
        "name_accuracy": named["name_accuracy"],
        "name_accuracy_95%": mean_interval(named["each"], seed),
        "each_is_a_name": named["each"],
    }


def mean_interval(values: Sequence[float], seed: int) -> list[float] | None:
    """Return the 95% bootstrap interval of a mean."""
    values = np.asarray(values, dtype=float)
    return bootstrap_interval(lambda rows: values[rows].mean(), len(values), seed=seed)


def interval_text(interval: list[float] | None) -> str | None:
    """Format an interval for a table."""
    return f"{interval[0]:.3f} .. {interval[1]:.3f}" if interval else None


def choose(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Choose which of `count` items are taken, in order: all, or `limit` of them at random."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def others(keys: Sequence, seed: int) -> np.ndarray:
    """
    Choose for each item at random one with another key, for a shuffled control.

    Raises:
        ValueError: all items have the same key.
    """
    rng = np.random.default_rng(seed)
    keys = np.asarray([str(key) for key in keys])
    if len(np.unique(keys)) < 2:
        raise ValueError("The shuffled control needs pictures that differ; all of these are the same: take more.")
    chosen = rng.permutation(len(keys))
    while (same := np.flatnonzero(keys[chosen] == keys)).size:
        chosen[same] = rng.integers(len(keys), size=same.size)
    return chosen


__all__ = ["choose", "interval_text", "load_metric", "load_metrics", "mean_interval", "others", "score_captions"]
