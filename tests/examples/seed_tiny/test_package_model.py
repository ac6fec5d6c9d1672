"""From trained parts to a repository."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from run_example import run_script
from tiny_language import make_language_repository
from tiny_repository import make_stable_diffusion, pictures
from toy_pictures import toy_rows
from transformers import AutoTokenizer

from seed import SeedModel, SeedPipeline, SeedProcessor


def test_trained_parts_become_one_repository(tmp_path, seed_repository):
    pq.write_table(pa.Table.from_pylist(toy_rows()), tmp_path / "train.parquet")
    make_stable_diffusion().save_pretrained(tmp_path / "sd" / "pipeline")  # as train_stable_diffusion.py leaves it
    make_language_repository(tmp_path / "language")
    tokenizer = tmp_path / "language" / "image_tokenizer"
    SeedProcessor.from_pretrained(tmp_path / "language").tokenizer.save_pretrained(tokenizer)
    run_script(
        "seed_tiny/package_model.py", "--image-tokenizer", tokenizer, "--decoder", tmp_path / "sd", "--captions",
        tmp_path / "train.parquet", "--language-model", tmp_path / "language", "--dtype", "float32",
        "--guidance-scale", 3, "--num-inference-steps", 2, "--output", tmp_path / "whole",
    )  # fmt: skip
    for part in ("language", "sd"):
        (tmp_path / part).rename(tmp_path / f"away-{part}")
    pipeline = SeedPipeline.from_pretrained(tmp_path / "whole", language_model=True)
    assert (pipeline.config.guidance_scale, pipeline.config.num_inference_steps) == (3, 2)
    expected = SeedModel.from_pretrained(tmp_path / "away-language" / "image_tokenizer", dtype=torch.float32).eval()
    with torch.no_grad():
        codes = expected.get_image_tokens(pipeline.image_processor(pictures(2), return_tensors="pt")["pixel_values"])
    assert torch.equal(pipeline.tokenize_images(pictures(2)), codes)
    assert len(pipeline(prompt="a dog").images) == 1
    captions = (tmp_path / "whole" / "image_tokenizer" / "captions.txt").read_text().splitlines()
    assert captions == ["red apple", "green leaf", "blue sky", "Red  apple", "white snow", "black cat"]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "whole" / "image_tokenizer")) > 0
