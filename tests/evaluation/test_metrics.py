"""Ranks and recalls against cases worked out by hand, and against a sort written here."""

import numpy as np
import pytest

from seed.evaluation.metrics import (
    bootstrap_interval,
    nearest_is_right,
    recall_at,
    retrieval_ranks,
    top_candidates,
)
from seed.evaluation.retrieval import collect_texts, score_retrieval

# Four pictures; pictures 0 and 3 show the same thing, text 0.
SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.2],  # right first
        [0.5, 0.4, 0.1],  # text 1 second
        [0.7, 0.6, 0.3],  # text 2 third
        [0.2, 0.8, 0.1],  # text 0 second
    ],
    dtype=np.float32,
)
NAMES = [["cat"], ["dog"], ["sun"], ["Cat "]]


def test_ranks_and_recalls_of_a_case_worked_out_by_hand():
    side = collect_texts(NAMES)
    assert side.texts == ["cat", "dog", "sun"]
    assert side.of_picture == [[0], [1], [2], [0]]
    result = score_retrieval(SIMILARITY, side)
    assert result.image_ranks.tolist() == [0, 1, 2, 1]
    # cat: picture 0 leads (0.9), picture 3 does not matter. dog: 0.4 behind 0.8 and 0.6. sun: 0.3 leads.
    assert result.text_ranks.tolist() == [0, 2, 0]
    assert result.scores["image_to_text"] == {"R@1": 0.25, "R@5": 1.0, "R@10": 1.0}
    assert result.scores["text_to_image"] == {"R@1": pytest.approx(2 / 3), "R@5": 1.0, "R@10": 1.0}
    assert result.scores["R@mean"] == pytest.approx((0.25 + 2 / 3 + 4) / 6)
    assert result.top_texts[3].tolist() == [1, 0, 2]
    assert result.top_pictures[1].tolist() == [3, 2, 1, 0]


def test_another_positive_never_stands_in_the_way():
    similarity = np.array([[0.9, 0.8, 0.85, 0.1]])
    assert retrieval_ranks(similarity, [[1, 0]]).tolist() == [0]
    assert retrieval_ranks(similarity, [[1, 1]]).tolist() == [2]  # a positive named twice counts once


def test_equal_similarities_are_no_luck():
    everything_equal = np.zeros((5, 5), np.float32)
    ranks = retrieval_ranks(everything_equal, [[i] for i in range(5)])
    assert ranks.tolist() == [4] * 5
    assert recall_at(ranks, 1) == 0.0
    # Nor is the noise of float32.
    nearly = 0.5 + 1e-7 * np.eye(5)
    assert retrieval_ranks(nearly, [[i] for i in range(5)]).tolist() == [4] * 5
    assert not nearest_is_right(everything_equal, np.eye(5, dtype=bool)).any()


def test_ranks_agree_with_a_sort():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(40, 30))
    positives = [rng.choice(30, size=rng.integers(1, 4), replace=False).tolist() for _ in range(40)]
    ranks = retrieval_ranks(similarity, positives)
    for k in (1, 5, 10):
        found = [bool(set(np.argsort(-row)[:k]) & set(right)) for row, right in zip(similarity, positives)]
        assert recall_at(ranks, k) == np.mean(found)


def test_broken_features_are_an_error_not_a_score():
    with pytest.raises(ValueError, match="NaN"):
        retrieval_ranks(np.array([[np.nan, 0.1]]), [[0]])


def test_nearest_is_right_needs_a_right_candidate():
    similarity = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.4]])
    right = np.array([[True, False], [True, False], [False, False]])
    assert nearest_is_right(similarity, right).tolist() == [True, False, False]


def test_top_candidates_are_in_order_of_similarity():
    assert top_candidates(np.array([[0.1, 0.9, 0.5]]), 2).tolist() == [[1, 2]]


def test_bootstrap_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(loc=3, scale=2, size=400)
    low, high = bootstrap_interval(lambda rows: values[rows].mean(), len(values))
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.05)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.05)
    assert bootstrap_interval(lambda rows: float("nan"), 10) is None
