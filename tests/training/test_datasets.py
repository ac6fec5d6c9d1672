from collections import Counter

import pytest

from seed.training.datasets import PictureSource, RunDataset


def sources():
    first = PictureSource([["a", "b"], ["c"], ["d", "e", "f"]], ["x", "y", "x"], images=[lambda: None] * 3)
    second = PictureSource([["g"], ["h"]], ["y", "z"], images=[lambda: None] * 2)
    return [first, second]


def test_every_picture_once_per_epoch_and_concepts_shared_across_sources():
    dataset = RunDataset(sources(), examples=15, seed=3)
    for epoch in range(3):
        examples = [dataset[position] for position in range(5 * epoch, 5 * epoch + 5)]
        assert Counter((e["source"], e["picture"]) for e in examples) == Counter(
            [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        )
    groups = {(e["source"], e["picture"]): e["group"] for e in examples}
    assert groups[0, 0] == groups[0, 2] != groups[0, 1] == groups[1, 0]


def test_a_position_depends_on_the_seed_alone():
    forwards, backwards = RunDataset(sources(), 50, seed=1), RunDataset(sources(), 50, seed=1)
    order = [forwards[i] for i in range(50)]
    assert [backwards[i] for i in reversed(range(50))][::-1] == order
    other = RunDataset(sources(), 50, seed=2)
    assert [other[i] for i in range(50)] != order


@pytest.mark.parametrize("probability, expected", [(1.0, 1.0), (0.0, 1 / 3)])
def test_share_of_the_first_caption(probability, expected):
    source = PictureSource([["first", "second", "third"]], ["x"], images=[lambda: None])
    dataset = RunDataset([source], 3000, first_caption_probability=probability)
    share = sum(dataset[i]["caption"] == "first" for i in range(3000)) / 3000
    assert abs(share - expected) < 0.03


def test_no_pictures_is_an_error():
    with pytest.raises(ValueError, match="--data"):
        RunDataset([PictureSource([], [], images=[])], 10)
