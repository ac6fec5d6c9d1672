"""Codes of views of pictures, made through a feature cache."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from run_example import run_script
from toy_pictures import toy_rows

from seed import SeedImageProcessorPil, SeedModel
from seed.data.codes import read_codes
from seed.data.images import load_image
from seed.training.language_examples import LanguageFile


def test_codes_of_views_are_made_once_and_a_killed_run_goes_on(tmp_path, seed_repository, capsys):
    pq.write_table(pa.Table.from_pylist(toy_rows()), tmp_path / "train.parquet")
    arguments = ["--data", tmp_path / "train.parquet", "--views", 3, "--model", seed_repository]
    cache = tmp_path / "cache"
    run_script("build_codes.py", *arguments, "--feature-cache", cache, "--output", tmp_path / "one.parquet")
    # As if killed before the file of codes was written: the features are there, and only read.
    (features,) = cache.glob("*train/features.npy")
    written = features.stat().st_mtime_ns
    run_script("build_codes.py", *arguments, "--feature-cache", cache, "--output", tmp_path / "two.parquet")
    assert features.stat().st_mtime_ns == written
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "two.parquet"))

    model = SeedModel.from_pretrained(seed_repository / "image_tokenizer", dtype=torch.float32).eval()
    processor = SeedImageProcessorPil.from_pretrained(seed_repository / "image_tokenizer")
    images = [load_image(row["image"]) for row in toy_rows()]
    with torch.no_grad():
        expected = model.get_image_tokens(processor(images, return_tensors="pt")["pixel_values"])
    stored = read_codes(tmp_path / "one.parquet", 64, 32).codes.reshape(6, 3, 32)
    assert (stored[:, 0] == expected).float().mean() > 0.9  # cached in float16
    file = LanguageFile(tmp_path / "one.parquet", model.codes_hash(), 64, 32)
    assert [list(views) for views in file.views["caption"]] == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(6)]
