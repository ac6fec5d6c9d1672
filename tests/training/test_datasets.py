from collections import Counter

import pytest

from seed.data.images import InvalidImageError
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


def test_a_picture_that_no_longer_opens_is_replaced_by_the_next(caplog):
    def broken():
        raise InvalidImageError("b.jpg", "the file is truncated", "Fetch it again.")

    whole = RunDataset(sources(), 10, seed=3)
    order = [(example["source"], example["picture"]) for example in map(whole.__getitem__, range(10))]
    lost = sources()
    lost[0].images[1] = broken
    found = [
        (example["source"], example["picture"]) for example in map(RunDataset(lost, 10, seed=3).__getitem__, range(10))
    ]
    expected = list(order)
    for position in (order.index((0, 1)), order.index((0, 1), 5)):
        following = position + 1 if position % 5 < 4 else position - 4  # within the epoch
        expected[position] = order[following]
    assert found == expected and lost[0].broken == {1}
    (message,) = (record.getMessage() for record in caplog.records)  # once, though its turn came twice
    assert message.startswith("b.jpg: the file is truncated") and "1 of 5 pictures are left out so far" in message
    for source in lost:
        source.images[:] = [broken] * len(source.images)
    with pytest.raises(InvalidImageError, match="b.jpg"):
        RunDataset(lost, 10, seed=3)[0]


def test_no_pictures_is_an_error():
    with pytest.raises(ValueError, match="--data"):
        RunDataset([PictureSource([], [], images=[])], 10)
