"""Ranks, recalls and intervals, in numpy."""

from collections.abc import Callable, Sequence

import numpy as np

# Two cosines nearer than this are a tie: the noise of float32 must not decide between candidates.
TIE = 1e-6


def retrieval_ranks(similarity: np.ndarray, positives: Sequence[Sequence[int]]) -> np.ndarray:
    """
    Return the rank of each query's best positive: the number of wrong candidates that are at least as similar.

    Other positives do not count, and ties count against the query, so that a model to which everything is equally
    similar has the worst rank, not a lucky one.

    Args:
        similarity: `(queries, candidates)`.
        positives: for each query the candidates that are right; at least one.

    Returns:
        `(queries,)` integers; 0 is the best.

    Raises:
        ValueError: a similarity is not finite.
    """
    if not np.isfinite(similarity).all():
        raise ValueError("Some similarities are NaN or infinite: the model's features are broken (half precision?).")
    ranks = np.empty(len(similarity), dtype=np.int64)
    for query, right in enumerate(positives):
        row, right = similarity[query], np.unique(right)
        bar = row[right].max() - TIE
        ranks[query] = np.count_nonzero(row >= bar) - np.count_nonzero(row[right] >= bar)
    return ranks


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Return R@k, the share of queries with a positive among the first k candidates."""
    return float((ranks < k).mean())


def nearest_is_right(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """
    Return whether the most similar candidate is a right one, `(queries,)`.

    A tie with a wrong candidate is a miss, and so is a query without a right candidate.

    Args:
        similarity, right: `(queries, candidates)`, the latter boolean.
    """
    best_right = np.where(right, similarity, -np.inf).max(axis=1)
    best_wrong = np.where(right, -np.inf, similarity).max(axis=1)
    return best_right > best_wrong + TIE


def top_candidates(similarity: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the most similar candidates, best first, `(queries, count)`; ties are ordered by index."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], count: int, resamples: int = 1000, seed: int = 0
) -> list[float] | None:
    """
    Return the 95% percentile interval of a statistic of `count` pictures, by drawing them anew with replacement.

    Args:
        statistic: computes the statistic of an array of picture indices; it returns NaN where it is not defined.

    Returns:
        The lower and upper end, or None if the statistic is not defined in every resample.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(count, size=count)) for _ in range(resamples)])
    if not np.isfinite(values).all():
        return None
    return [float(end) for end in np.percentile(values, [2.5, 97.5])]
