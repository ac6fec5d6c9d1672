"""`seed evaluate reconstruction`: the arithmetic by hand, the command on a toy file."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from seed.commands.main import execute, make_parser
from seed.evaluation.judge import EfficientNetJudge
from seed.evaluation.pictures import PictureSet
from seed.evaluation.reconstruction import Drawer, JudgedDrawings, judge_drawings, score_drawings
from seed.pipeline_seed import SeedPipeline

UNIT = np.eye(4, dtype=np.float32)


def run(*arguments):
    args = make_parser().parse_args(["evaluate", "reconstruction", "--device", "cpu", *map(str, arguments)])
    return execute(args)


def test_judged_by_hand():
    # Gallery: cat, dog, cat, sun, each along an axis of its own; the first two were drawn.
    drawings = np.array([[0.0, 0.6, 0.8, 0.0], [0.0, 0.28, 0.0, 0.96]], dtype=np.float32)
    judged = judge_drawings(UNIT, ["cat", "dog", "Cat", "sun"], [0, 1], drawings)
    np.testing.assert_allclose(judged.similarity, [0.0, 0.28], atol=1e-6)
    # The cat against the dog's drawing, and the dog against the cat's.
    np.testing.assert_allclose(judged.shuffled, [0.0, 0.6], atol=1e-6)
    # The cat's drawing is nearest to the other cat, which is right; the dog's is nearest to the sun.
    assert judged.ranks.tolist() == [0, 1]
    assert judged.top[0, :2].tolist() == [2, 1]


def test_shuffling_spares_pictures_of_the_same_name():
    pictures, drawings = np.ones((3, 4), np.float32) / 2, UNIT[:3] * [[2], [4], [6]]
    judged = judge_drawings(pictures, ["cat", "cat", "dog"], [0, 1, 2], drawings)
    # Cosine of any picture with drawing j is 1, 2, 3: a cat is compared with the dog's only, the dog with both cats'.
    np.testing.assert_allclose(judged.shuffled, [3, 3, 1.5])
    with pytest.raises(ValueError, match="same name"):
        judge_drawings(UNIT, ["cat"] * 4, [0, 1, 2, 3], UNIT)


def judged(similarity, shuffled):
    similarity = np.asarray(similarity, dtype=float)
    count = len(similarity)
    return JudgedDrawings(similarity, np.full(count, shuffled), np.zeros(count, int), np.zeros((count, 5), int))


def test_normalized_similarity_by_hand():
    ours, upper = judged([0.5, 0.7, 0.6], 0.3), judged([0.6, 0.8, 0.7], 0.3)
    scores = score_drawings(ours, upper, ours.shuffled)
    assert scores["similarity"] == pytest.approx(0.6)
    assert scores["normalized"] == pytest.approx((0.6 - 0.3) / (0.7 - 0.3))
    low, high = scores["normalized_95%"]
    assert low < scores["normalized"] < high
    assert score_drawings(upper, upper, ours.shuffled)["normalized"] == pytest.approx(1.0)
    assert score_drawings(ours, judged([0.3, 0.3, 0.3], 0.3), ours.shuffled)["normalized"] is None


def test_the_command(seed_root, toy_data, tmp_path, capsys, monkeypatch):
    # The judge at a fifth of its size: the test is of the command.
    monkeypatch.setattr(EfficientNetJudge, "size", 64)
    output = tmp_path / "out"
    options = ["--model", seed_root, "--data", toy_data, "--num-inference-steps", 2, "--guidance-scale", 2]
    assert run(*options, "--output", output, "--prefix-lengths", "1,4") == 0
    report = json.loads((output / "reconstruction.json").read_text())
    assert list(report["results"]) == [
        "from the first 1", "from the first 4", "from all 32 codes", "Stable Diffusion from the caption", "shuffled",
    ]  # fmt: skip
    assert report["data"]["pictures"] == report["data"]["drawn"] == 6 and report["data"]["skipped"] == 1
    assert report["settings"]["num_inference_steps"] == 2
    rows = pq.read_table(output / "reconstruction_images.parquet").to_pylist()
    assert len(rows) == 6 and len(rows[0]["codes"]) == 32
    label = "from all 32 codes"
    mean = np.mean([row[f"{label} similarity"] for row in rows])
    assert report["results"][label]["similarity"] == pytest.approx(mean)
    assert "drawn of 6 pictures" in capsys.readouterr().out

    # Another batch size and a choice of pictures change nothing about a picture.
    again = tmp_path / "again"
    run(*options, "--output", again, "--limit", 3, "--batch-size", 2)
    by_row = {row["row"]: row for row in rows}
    some = pq.read_table(again / "reconstruction_images.parquet").to_pylist()
    assert len(some) == 3
    for row in some:
        assert row["codes"] == by_row[row["row"]]["codes"]
        for kind in (label, "Stable Diffusion from the caption"):
            assert row[f"{kind} similarity"] == pytest.approx(by_row[row["row"]][f"{kind} similarity"], abs=1e-3)


def test_drawings_are_the_pipelines_own(seed_root, toy_data):
    """What is judged is what a user of SeedPipeline would see."""
    drawer = Drawer(seed_root, num_inference_steps=2, guidance_scale=2.0, seed=3)
    batch = next(PictureSet(toy_data).batches(2))
    codes = drawer.tokenize(batch)
    drawn = drawer.reconstruct(batch, codes, prefix_length=32)
    pipeline = SeedPipeline.from_pretrained(seed_root, dtype=torch.float32)
    seed = np.random.SeedSequence((3, 1)).generate_state(1)[0]
    alone = pipeline(
        batch[1].image, num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(int(seed))
    )
    assert torch.equal(alone.codes, codes[1:])
    difference = np.abs(np.asarray(alone.images[0], dtype=int) - np.asarray(drawn[1], dtype=int))
    assert difference.max() <= 1


def test_bad_options_say_what_to_do(seed_root, toy_data, tmp_path):
    options = ["--model", seed_root, "--data", toy_data, "--output", tmp_path / "out"]
    with pytest.raises(ValueError, match="32 codes"):
        run(*options, "--prefix-lengths", "1,33")
    with pytest.raises(ValueError, match="at least 2"):
        run(*options, "--limit", 1)
    with pytest.raises(SystemExit):
        run(*options, "--prefix-lengths", "one")
