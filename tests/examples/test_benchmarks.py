"""The benchmarks, run at toy size: that they run, that they count right, and that what they call equal is equal."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from seed.quantization_seed import SeedVectorQuantizer

BENCHMARKS = Path(__file__).parents[2] / "examples/benchmarks"


@pytest.fixture
def load_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    # The benchmarks measure memory in processes of their own, which shall find the package where this one does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS.parents[1]), os.environ.get("PYTHONPATH", "")]))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_tokenizer_benchmark_prints_its_ratios(load_benchmark, tmp_path, capsys):
    output = tmp_path / "figures.json"
    arguments = ["--size", "toy", "--batch-sizes", "1", "2", "--rounds", "2", "1", "--output", str(output)]
    load_benchmark("benchmark_tokenizer").main(arguments)
    figures = json.loads(output.read_text())
    printed = capsys.readouterr().out
    for dtype in ("float32", "bfloat16"):
        assert f"speed {dtype} sdpa batch 2, 1 rounds, wall time" in printed
        speed = figures["speed"][f"{dtype} sdpa"]["2"]
        # The same two times in two ways: both shares are flops / time / peak, the ratio is time / time.
        flops = figures["flops_per_image"]["tokenizer"] / figures["flops_per_image"]["vision"]
        shares = speed["matmul_peak_share_of_vision_wall"] / speed["matmul_peak_share_wall"]
        assert shares * flops == pytest.approx(speed["ratio_to_vision_wall"])
    memory = figures["memory"]
    assert memory["float32"]["weight_bytes_used"] == 2 * memory["bfloat16"]["weight_bytes_used"]
    assert memory["float32"]["peak_bytes"] > memory["float32"]["baseline_bytes"]
    # Two rounds at batch 1 cover both pictures of batch 2; each has four codes.
    comparison = figures["agreement"]["comparisons"]["float32 sdpa batch 1 vs float32 sdpa batch 2"]
    assert comparison["compared"] == 8 and comparison["differing"] == 0


def test_flops_are_the_architectures_arithmetic(load_benchmark):
    benchmark = load_benchmark("benchmark_tokenizer")
    counted = benchmark.count_flops(benchmark.build_config("full"))
    width, tokens, mlp = 1408, 257, 6144
    block = tokens * (4 * width**2 + 2 * width * mlp) + 2 * tokens**2 * width
    vision = 2 * (39 * block + 256 * width * 3 * 14**2)
    assert counted["vision"] == vision
    queries, hidden = 32, 768
    self_attention = queries * 4 * hidden**2 + 2 * queries**2 * hidden
    cross_attention = 2 * tokens * width * hidden + 2 * queries * hidden**2 + 2 * queries * tokens * hidden
    feed_forward = 2 * queries * hidden * 4 * hidden
    qformer = 2 * (12 * (self_attention + feed_forward) + 6 * cross_attention)
    encode_layer = 2 * queries * (hidden**2 + hidden * 32)
    assert counted["tokenizer"] == vision + qformer + encode_layer + 2 * queries * 32 * 8192


def test_agreement_counts_a_changed_vector_and_its_margin(load_benchmark):
    benchmark = load_benchmark("benchmark_tokenizer")
    quantizer = SeedVectorQuantizer(3, 1)
    with torch.no_grad():
        quantizer.codebook.weight.copy_(torch.tensor([[0.0], [1.0], [10.0]]))
    expected = {0: torch.tensor([[0.1], [0.4999], [9.0]]), 1: torch.tensor([[0.0], [0.0], [0.0]])}
    found = {0: torch.tensor([[0.1], [0.5001], [0.2]])}
    row = benchmark.compare(quantizer, found, expected, "float32 sdpa", "float32 sdpa")
    assert (row["compared"], row["differing"], row["near_ties"]) == (3, 2, 1)
    assert row["largest_margin_of_differing"] == pytest.approx(64 - 1, rel=1e-4)  # 9 is 1 from 10 and 8 from 1


def test_quantizer_benchmark_prints_its_ratios(load_benchmark, tmp_path, capsys):
    output = tmp_path / "figures.json"
    arguments = ["--vectors", "5000", "--codes", "64", "--rounds", "1", "--output", str(output)]
    load_benchmark("benchmark_quantizer").main(arguments)
    figures = json.loads(output.read_text())
    assert "seed / cdist" in capsys.readouterr().out
    ratio = figures["seed_seconds_wall"] / figures["cdist_seconds_wall"]
    assert figures["ratio_to_cdist_wall"] == pytest.approx(ratio)
    assert figures["seed_memory_bytes"] >= 0 and figures["differing"] <= 5


def test_generation_benchmark_compares_equal_work(load_benchmark, tmp_path, capsys):
    output = tmp_path / "figures.json"
    arguments = ["--model", "toy", "--batch-sizes", "2", "--rounds", "1", "--matmul-size", "64"]
    benchmark = load_benchmark("benchmark_generation")
    benchmark.main([*arguments, "--output", str(output)])
    wall = json.loads(output.read_text())["batches"]["2"]["wall"]
    assert wall["times_stock"] == pytest.approx(wall["tokens_per_second"] / wall["stock_tokens_per_second"])
    assert "OPT-toy float32 batch 2, 1 rounds, wall time" in capsys.readouterr().out
    ours, stock = benchmark.build(benchmark.parse_arguments(arguments))
    assert ours.config.vocab_size == stock.config.vocab_size == 58459
    assert stock.lm_head.weight is stock.get_input_embeddings().weight


def test_packing_benchmark_counts_useful_tokens(load_benchmark, tmp_path, capsys):
    benchmark = load_benchmark("benchmark_packing")
    output = tmp_path / "figures.json"
    benchmark.main(["--model", "toy", "--examples", "24", "6", "--rounds", "1", "--output", str(output)])
    assert "captions, toy, rows of 128, 1 rounds, wall time" in capsys.readouterr().out
    data = json.loads(output.read_text())["data"]
    for name in ("captions", "documents"):
        assert data[name]["useful_share"]["packed"] > data[name]["useful_share"]["padded"] > 0.3
    assert data["captions"]["useful_share"]["packed"] >= 0.97
    rng = benchmark.random.Random(0)
    lengths = benchmark.caption_lengths(24, rng)
    expected = sum(lengths) / (24 * max(lengths))
    assert data["captions"]["useful_share"]["padded"] == pytest.approx(expected)


def test_adapter_memory_benchmark_counts_what_is_trained(load_benchmark):
    benchmark = load_benchmark("benchmark_adapter_memory")
    arguments = benchmark.parse_arguments(["--model", "toy"])
    figures = {which: benchmark.measure(which, arguments) for which in ("seed", "stock")}
    width, layers, rank = 32, 2, 16
    lora = layers * rank * (4 * 2 * width + 2 * (width + 4 * width))
    visual = 32 * width + width + 2 * width + (2 + 8192) * width
    assert figures["seed"]["trainable_bytes"] == 4 * (lora + visual)
    assert figures["stock"]["trainable_bytes"] == 4 * (lora + 58459 * width)
    codebook = 4 * 8192 * 32
    assert 0 < figures["seed"]["adapter_bytes"] - 4 * (lora + visual) - codebook < 16000
