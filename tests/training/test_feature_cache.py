import random

import pytest
import torch
from datasets import Dataset
from PIL import Image

from seed import SeedImageProcessorPil, SeedModel
from seed.data.images import InvalidImageError
from seed.data.provenance import hash_tensors, weight_hash
from seed.training.datasets import PictureSource, RunDataset
from seed.training.feature_cache import MAX_BROKEN, FeatureCache, build_embedding_cache, build_feature_cache

PICTURES = [Image.new("RGB", (20, 20), (10 * i, 255 - 10 * i, 77)) for i in range(7)]


def shift(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.point(lambda value: (value + rng.randint(1, 99)) % 256)


@pytest.fixture
def processor():
    return SeedImageProcessorPil(size={"height": 28, "width": 28})


def build(folder, model, processor, images, **kwargs):
    settings = {"views": 2, "augment": shift, "batch_size": 4, "autocast": False, "log": lambda text: None} | kwargs
    return build_feature_cache(folder, model, processor, images, **settings)


def test_cached_features_are_those_of_the_model(tmp_path, config, processor):
    model = SeedModel(config).eval()
    cache = build(tmp_path / "cache", model, processor, [lambda i=i: PICTURES[i] for i in range(7)])
    assert len(cache) == 7 and cache.views == 2
    expected = model.get_vision_features(processor(PICTURES, return_tensors="pt")["pixel_values"])
    for i in range(7):
        # float16 on disk
        torch.testing.assert_close(cache.get(i, 0).float(), expected[i], rtol=2e-3, atol=2e-3)
        assert not torch.equal(cache.get(i, 0), cache.get(i, 1))


def test_pictures_have_views_of_their_own(tmp_path, config, processor):
    """Of one picture twice, two different views: what is drawn depends on the picture's number too."""
    cache = build(tmp_path / "cache", SeedModel(config).eval(), processor, [lambda: PICTURES[3]] * 2)
    assert torch.equal(cache.get(0, 0), cache.get(1, 0)) and not torch.equal(cache.get(0, 1), cache.get(1, 1))


def test_a_killed_build_continues_where_it_stopped(tmp_path, config, processor):
    model = SeedModel(config).eval()
    opened = []

    def opener(i, broken):
        def open_picture():
            if i == broken:
                raise KeyboardInterrupt
            opened.append(i)
            return PICTURES[i]

        return open_picture

    # progress is written every 32 batches; one picture per batch makes it visible after 32
    many = [i % 7 for i in range(40)]
    with pytest.raises(KeyboardInterrupt):
        images = [opener(k, None) if n < 36 else opener(k, k) for n, k in enumerate(many)]
        build(tmp_path / "cache", model, processor, images, views=1, augment=None, batch_size=1)
    with pytest.raises(ValueError, match="holds 32 of 40 pictures"):
        FeatureCache(tmp_path / "cache")
    opened.clear()
    images = [opener(k, None) for k in many]
    resumed = build(tmp_path / "cache", model, processor, images, views=1, augment=None, batch_size=1)
    assert len(opened) == 8, "the 32 finished pictures are not computed again"
    whole = build(tmp_path / "whole", model, processor, images, views=1, augment=None, batch_size=1)
    assert all(torch.equal(resumed.get(i, 0), whole.get(i, 0)) for i in range(40))


def test_a_cache_of_another_model_is_refused(tmp_path, config, processor):
    images = [lambda: PICTURES[0]]
    build(tmp_path / "cache", SeedModel(config).eval(), processor, images)
    other = SeedModel(config).eval()
    with torch.no_grad():
        next(other.vision_model.parameters()).add_(1)
    with pytest.raises(ValueError, match="vision_model.*Name another folder"):
        build(tmp_path / "cache", other, processor, images)


def test_cached_causal_embeddings_are_those_of_the_model(tmp_path, config, processor):
    model = SeedModel(config).eval()
    source = build(tmp_path / "features", model, processor, [lambda i=i: PICTURES[i] for i in range(7)])
    cache = build_embedding_cache(tmp_path / "embeddings", model, source, batch_size=5, autocast=False)
    assert (len(cache), cache.views, cache.argument) == (7, 2, "causal_embeddings")
    expected = model.get_causal_embeddings(processor(PICTURES, return_tensors="pt")["pixel_values"])
    for i in range(7):
        torch.testing.assert_close(cache.get(i, 0).float(), expected[i], rtol=5e-3, atol=5e-3)
    with torch.no_grad():
        model.qformer.query_tokens.add_(1)
    with pytest.raises(ValueError, match="qformer"):
        build_embedding_cache(tmp_path / "embeddings", model, source)


def test_a_picture_that_breaks_does_not_end_a_build(tmp_path, config, processor):
    """It is named, and keeps its place with features that nobody gets; the others' are as they would be."""
    model, log = SeedModel(config).eval(), []

    def broken():
        raise InvalidImageError("b.jpg", "truncated or damaged", "Fetch it again.", "4 bytes left")

    images = [lambda i=i: PICTURES[i] for i in range(7)]
    whole = build(tmp_path / "whole", model, processor, images)
    images[5] = broken
    build(tmp_path / "cache", model, processor, images, log=log.append)
    cache = FeatureCache(tmp_path / "cache")
    assert "b.jpg: truncated or damaged (4 bytes left)" in log[0] and "7 of 7 pictures (1 left out)" in log[1]
    for opened in (cache, build_embedding_cache(tmp_path / "embeddings", model, cache, autocast=False)):
        assert list(opened.broken) == [5]
        with pytest.raises(InvalidImageError, match="b.jpg: truncated or damaged .4 bytes left.. Fetch it again."):
            opened.get(5, 0)
    assert all(torch.equal(cache.get(i, v), whole.get(i, v)) for i in range(7) if i != 5 for v in range(2))
    source = PictureSource([["a"]] * 7, ["a"] * 7, cache=cache)
    run = [example["picture"] for example in map(RunDataset([source], 7).__getitem__, range(7))]
    assert sorted({*run, 5}) == list(range(7)) and 5 not in run and source.broken == {5}


def test_a_disk_that_is_gone_ends_a_build(tmp_path, config, processor):
    def gone():
        raise InvalidImageError("c.jpg", "no such file", "Check the path.")

    with pytest.raises(InvalidImageError, match="c.jpg"):
        build(tmp_path / "cache", SeedModel(config).eval(), processor, [gone] * (MAX_BROKEN + 1))


def test_how_often_an_encoder_was_trained_makes_no_other_model():
    """Its weights are the same; a changed statistic of a batch norm is another model."""
    norm = torch.nn.BatchNorm2d(3)
    before = weight_hash(norm)
    assert before == hash_tensors(norm.state_dict().items())  # as it was while the counters counted
    norm.num_batches_tracked += 7
    assert weight_hash(norm) == before
    norm.running_mean += 1
    assert weight_hash(norm) != before


def test_other_pictures_are_another_cache(tmp_path, config, processor):
    model = SeedModel(config).eval()
    images = [lambda i=i: PICTURES[i] for i in range(3)]
    build(tmp_path / "cache", model, processor, images, identity="apples")
    build(tmp_path / "cache", model, processor, images, identity="apples")
    with pytest.raises(ValueError, match="another identity .*apples.*pears"):
        build(tmp_path / "cache", model, processor, images, identity="pears")


def test_a_run_that_resumes_does_not_open_every_file_again(tmp_path, monkeypatch):
    """As long as the data are the same; other data are looked at anew."""
    from seed.training import stage

    PICTURES[0].save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    images = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "b.png")]
    rows = {"image": images, "captions": [["a"], ["b"]], "id": ["a", "b"]}
    dataset, memory = Dataset.from_dict(rows), tmp_path / "run" / "usable_rows.json"
    assert stage._usable_rows_once(dataset, stage._identity(dataset), memory) == [0]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_fault", lambda source, captions: pytest.fail("opened again"))
        assert stage._usable_rows_once(dataset, stage._identity(dataset), memory) == [0]
    # One of so many pictures that the identity does not see it, mended since.
    assert stage._usable_rows_once(dataset, "of others", memory) == [0]
    PICTURES[0].save(tmp_path / "b.png")
    assert stage._usable_rows_once(dataset, "of others", memory) == [0, 1]
    (tmp_path / "b.png").write_bytes(b"broken again")
    assert stage._usable_rows_once(dataset, "of others", memory) == [0]
    # A run that goes on keeps its rows: a picture that is lost meanwhile does not make it another run.
    assert stage._usable_rows_once(dataset, "of a run", memory) == [0]
    PICTURES[0].save(tmp_path / "b.png")
    (tmp_path / "a.png").unlink()
    assert stage._usable_rows_once(dataset, "of a run", memory, resumes=True) == [0]
    assert stage._usable_rows_once(dataset, "of a run", memory) == [1]
    PICTURES[0].save(tmp_path / "a.png")
    other = dataset.remove_columns("id").add_column("id", ["a", "c"])
    assert stage._usable_rows_once(other, stage._identity(other), memory) == [0, 1]
    before = stage._identity(dataset)
    PICTURES[1].save(tmp_path / "b.png")
    assert stage._identity(dataset) != before, "the same names and captions, another picture"


def test_pictures_without_a_concept_go_by_their_first_caption(tmp_path):
    """A column of nulls would make every picture a positive of every other."""
    from seed.training.recipes import StageRecipe
    from seed.training.stage import StageData, open_sources

    PICTURES[0].save(tmp_path / "a.png")
    picture = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    for name, concepts in (("a", [None, None]), ("b", [3, None])):
        rows = {"image": [picture] * 2, "captions": [["Dog"], ["cat"]], "concept": concepts}
        Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
    data = StageData([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    sources = open_sources(data, StageRecipe(epochs=1, training={}), None, None, output=tmp_path / "run")
    assert [list(source.concepts) for source in sources] == [["dog", "cat"], ["3", "cat"]]
