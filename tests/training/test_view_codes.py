"""Codes of several views: from the cache as from the model, written as the language model's data."""

import torch
from test_feature_cache import shift
from tiny_repository import make_seed_model, pictures

from seed import SeedImageProcessorPil
from seed.data.codes import CodesMetadata, read_codes
from seed.training.feature_cache import build_feature_cache, codes_of_cache, open_embedding_cache
from seed.training.language_examples import LanguageFile, write_views


def test_codes_of_cached_views_are_those_of_the_model(tmp_path):
    model, processor = make_seed_model(), SeedImageProcessorPil(size={"height": 28, "width": 28})
    images = pictures(6)
    cache = build_feature_cache(
        tmp_path / "features", model, processor, [lambda i=i: images[i] for i in range(6)], views=2, augment=shift,
        batch_size=4, autocast=False, log=lambda text: None,
    )  # fmt: skip
    embeddings = open_embedding_cache(model, cache)
    codes = codes_of_cache(model, embeddings, batch_size=5)
    assert codes.shape == (6, 2, 32)
    with torch.no_grad():
        expected = model.get_image_tokens(processor(images, return_tensors="pt")["pixel_values"])
    # Cached in float16, perhaps after bfloat16 arithmetic: near-ties may fall the other way.
    assert (codes[:, 0] == expected).float().mean() > 0.9
    assert (codes[:, 0] != codes[:, 1]).any(), "the views differ"

    metadata = CodesMetadata.of(model, processor)
    write_views(tmp_path / "codes.parquet", codes, [[f"picture {i}"] for i in range(6)], metadata)
    stored = read_codes(tmp_path / "codes.parquet", 64, 32)
    assert stored.metadata == metadata and torch.equal(stored.codes.reshape(6, 2, 32), codes)
    file = LanguageFile(tmp_path / "codes.parquet", model.codes_hash(), 64, 32)
    assert file.count("caption") == 6 and [list(views) for views in file.views["caption"]] == [
        [2 * i, 2 * i + 1] for i in range(6)
    ]
