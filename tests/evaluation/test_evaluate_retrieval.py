"""`seed evaluate retrieval` on a toy file, against the scores computed here from the model's own features."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_pictures import toy_rows
from transformers import AutoTokenizer

from seed.commands.main import execute, make_parser
from seed.data.images import load_image
from seed.image_processing_seed import SeedImageProcessorPil
from seed.modeling_seed import SeedModel


def run(*arguments):
    args = make_parser().parse_args(["evaluate", "retrieval", "--device", "cpu", *map(str, arguments)])
    return execute(args)


def reference_similarity(folder, texts, kind):
    """`(6, texts)` by single pictures and single texts, unbatched."""
    model = SeedModel.from_pretrained(folder).eval()
    processor, tokenizer = SeedImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    images, words = [], []
    with torch.no_grad():
        for row in toy_rows():
            pixel_values = processor(load_image(row["image"]), return_tensors="pt")["pixel_values"]
            embeddings = model.get_causal_embeddings(pixel_values)
            if kind == "codes":
                embeddings = model.reconstruct_causal_embeddings(model.get_image_tokens(pixel_values))
            images.append(model.vision_projection(embeddings[0] if kind == "bidirectional" else embeddings[0, -1:]))
        for text in texts:
            input_ids = tokenizer(text, return_tensors="pt").input_ids
            words.append(model.text_projection(model.qformer(input_ids=input_ids)[:, 0]))
    return np.array([[torch.cosine_similarity(image, word).max().item() for word in words] for image in images])


def recall(similarity, right, k):
    return np.mean([bool(set(np.argsort(-row)[:k]) & set(good)) for row, good in zip(similarity, right)])


def test_the_three_rows(make_image_tokenizer, tmp_path, toy_data, capsys):
    make_image_tokenizer(tmp_path / "root" / "image_tokenizer")
    make_image_tokenizer(tmp_path / "blip", qformer_config={"causal": False}, use_code_branch=False)
    train = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(toy_rows()[:3]), train)
    output = tmp_path / "out"
    assert run("--model", tmp_path / "root", "--bidirectional", tmp_path / "blip", "--data", toy_data,
               "--train-data", train, "--output", output, "--batch-size", 4) == 0  # fmt: skip

    report = json.loads((output / "retrieval.json").read_text())
    texts = ["red apple", "green leaf", "blue sky", "white snow", "black cat"]
    right_texts = [[0], [1], [2], [0], [3], [4]]
    right_pictures = [[0, 3], [1], [2], [4], [5]]
    folders = {"bidirectional": "blip", "causal embeddings": "root/image_tokenizer", "codes": "root/image_tokenizer"}
    assert list(report["results"]) == list(folders)
    images = pq.read_table(output / "retrieval_images.parquet").to_pylist()
    for kind, folder in folders.items():
        similarity = reference_similarity(tmp_path / folder, texts, kind)
        scores = report["results"][kind]
        for k in (1, 5, 10):
            assert scores["image_to_text"][f"R@{k}"] == pytest.approx(recall(similarity, right_texts, k))
            assert scores["text_to_image"][f"R@{k}"] == pytest.approx(recall(similarity.T, right_pictures, k))
        six = [*scores["image_to_text"].values(), *scores["text_to_image"].values()]
        assert scores["R@mean"] == pytest.approx(np.mean(six))
        for row, best in zip(images, similarity.argmax(axis=1)):
            assert row[f"{kind} top texts"][0] == texts[best]

    assert report["data"] == {"source": str(toy_data), "split": None, "pictures": 6, "skipped": 1, "texts": 5}
    # Three of the six pictures are in the training file themselves; a copy of one name is not its nearest picture.
    assert report["floors"]["pixels_16x16"] >= 0.5 and report["floors"]["encoder"] >= 0.5
    assert [row["row"] for row in images] == [0, 1, 3, 4, 5, 6]  # the broken picture is number 2
    codes = np.array([row["codes"] for row in images])
    assert report["codebook"]["distinct_code_sequences"] == 6  # else this test would show little
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    assert report["codebook"]["usage"] == pytest.approx(len(counts) / 64)
    assert report["codebook"]["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert len(report["models"]["model"]["weights_sha256"]) == 64
    printed = capsys.readouterr().out
    assert "causal embeddings" in printed and "6 pictures (1 skipped)" in printed and "not comparable" in printed
    assert not list(output.glob("*.tmp"))


def test_every_caption_can_be_a_text_of_its_own(make_image_tokenizer, tmp_path, toy_data):
    make_image_tokenizer(tmp_path / "model")
    run("--model", tmp_path / "model", "--data", toy_data, "--texts", "captions", "--output", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    # Two captions a picture; both of the two apples are the same.
    assert report["data"]["texts"] == 10
    assert set(report["results"]) == {"causal embeddings", "codes"}
    assert report["floors"] is None


def test_a_causal_model_is_no_bidirectional_row(make_image_tokenizer, tmp_path, toy_data):
    make_image_tokenizer(tmp_path / "model", use_code_branch=False)
    with pytest.raises(ValueError, match="causal Q-Former"):
        run("--model", tmp_path / "model", "--bidirectional", tmp_path / "model", "--data", toy_data,
            "--output", tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_stage_one_is_scored_without_codes(make_image_tokenizer, tmp_path, toy_data):
    make_image_tokenizer(tmp_path / "model", use_code_branch=False)
    run("--model", tmp_path / "model", "--data", toy_data, "--output", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert list(report["results"]) == ["causal embeddings"] and report["codebook"] is None


def test_without_a_reconstruction_decoder_the_row_of_codes_is_missing_and_said_so(
    make_image_tokenizer, tmp_path, toy_data, capsys
):
    make_image_tokenizer(tmp_path / "model", use_reconstruction_decoder=False)
    assert run("--model", tmp_path / "model", "--data", toy_data, "--output", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert set(report["results"]) == {"causal embeddings"} and report["codebook"]["distinct_code_sequences"] > 1
    assert "no reconstruction decoder" in capsys.readouterr().out


def test_a_missing_text_tokenizer_is_named(make_image_tokenizer, tmp_path, toy_data, monkeypatch):
    make_image_tokenizer(tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    monkeypatch.setattr("seed.evaluation.retrieval._encode", lambda *_, **__: pytest.fail("encoded in vain"))
    with pytest.raises(FileNotFoundError, match="bert-base-uncased"):
        run("--model", tmp_path / "model", "--data", toy_data, "--output", tmp_path / "out")
