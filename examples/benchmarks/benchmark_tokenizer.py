"""
Measure speed, memory and stability of the SEED image tokenizer at full size, as ratios to peers in the same run.

    python examples/benchmarks/benchmark_tokenizer.py --threads 1 --rounds 3 2 1        # about 15 CPU minutes
    python examples/benchmarks/benchmark_tokenizer.py --device cuda --compile --rounds 20
    python examples/benchmarks/benchmark_tokenizer.py --size toy --rounds 1             # seconds; shows that it runs

Weights are random; speed and memory do not depend on them. README.md says what was measured and how to read it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measuring import (
    Matmul,
    interleave,
    measure_in_fresh_process,
    median_ratio,
    median_time,
    resident_memory,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2VisionConfig
from transformers.utils import logging

from seed.configuration_seed import SeedConfig
from seed.modeling_seed import SeedModel
from seed.quantization_seed import SeedVectorQuantizer, codebook_usage

# Two codes are a near-tie if the second-nearest is less than this much farther (squared distance, relative).
NEAR_TIE = 1e-3


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "toy"), default="full")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", nargs="+", type=int, default=[3], help="one number, or one per batch size")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure under torch.compile as well")
    parser.add_argument(
        "--vision-attention", nargs="+", choices=("sdpa", "eager"), default=["sdpa"],
        help="attention of the vision model; with several, each is measured",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="torch's threads; 1 on a machine that others use too")
    parser.add_argument("--matmul-size", type=int, help="default: 4096 on the CPU, 8192 on the GPU, 512 for toys")
    parser.add_argument("--scratch", type=Path, help="folder for the random checkpoints (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)  # for `measure_memory`
    arguments = parser.parse_args(argv)
    if len(arguments.rounds) == 1:
        arguments.rounds *= len(arguments.batch_sizes)
    if len(arguments.rounds) != len(arguments.batch_sizes):
        parser.error(f"--rounds has {len(arguments.rounds)} numbers for {len(arguments.batch_sizes)} batch sizes.")
    return arguments


def build_config(size: str) -> SeedConfig:
    """Return a configuration of the paper's sizes, or of a toy with the same structure."""
    # transformers draws BLIP-2's ViT with a standard deviation of 1e-10, which would make every image the same.
    vision = {"initializer_range": 0.02}
    if size == "full":
        return SeedConfig(vision_config=Blip2VisionConfig(**vision))
    vision |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    qformer = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return SeedConfig(
        vision_config=Blip2VisionConfig(**vision),
        qformer_config=qformer | {"num_queries": 4, "vocab_size": 50},
        codebook_size=64, code_dim=8, decoder_num_layers=1, decoder_num_heads=2,
        reverse_qformer_config={"num_queries": 6, "num_hidden_layers": 1}, generation_dim=16, projection_dim=8,
    )  # fmt: skip


def load(checkpoint: Path, dtype: str, device: str = "cpu", vision_attention: str = "sdpa") -> SeedModel:
    model = SeedModel.from_pretrained(
        checkpoint,
        dtype=getattr(torch, dtype),
        use_text_branch=False,
        attn_implementation={"": "sdpa", "vision_config": vision_attention},
    )
    return model.eval().to(device)


def count_flops(config: SeedConfig) -> dict[str, int]:
    """Count the floating-point operations of one image's matmuls and convolutions as torch runs them, on no device."""
    with torch.device("meta"):
        model = SeedModel(config).eval()
        pixel_values = torch.empty(1, 3, config.vision_config.image_size, config.vision_config.image_size)
    counts = {}
    with torch.no_grad():
        with FlopCounterMode(display=False) as vision:
            features = model.get_vision_features(pixel_values)
        with FlopCounterMode(display=False) as rest:
            model.encode_causal_embeddings(model.get_causal_embeddings(vision_features=features))
    # The quantizer's one matmul takes every code vector against every row of the codebook.
    lookup = 2 * config.num_codes * config.code_dim * config.codebook_size
    counts["vision"] = vision.get_total_flops()
    counts["tokenizer"] = counts["vision"] + rest.get_total_flops() + lookup
    return counts


def make_images(count: int, size: int) -> torch.Tensor:
    """Return random smooth pictures `(count, 3, size, size)`, about as bright and contrasty as normalised photos."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        torch.nn.functional.interpolate(
            torch.randn(count, 3, side, side, generator=generator), (size, size), mode="bilinear"
        )
        for side in (2, 5, 14)
    ]
    return sum(layers)


def parts_for_tokenising(model: SeedModel) -> list[torch.nn.Module]:
    return [model.vision_model, model.qformer, model.encode_layer, model.quantizer]


def report_memory(checkpoint: Path, dtype: str) -> None:
    """Load and tokenise one image in a fresh process, and print its peak and its size after the imports."""
    baseline = resident_memory()["VmRSS"]
    model = load(checkpoint, dtype)
    size = model.config.vision_config.image_size
    with torch.no_grad():
        model.get_image_tokens(make_images(1, size))
    peak = resident_memory()["VmHWM"]
    used = [parameter for part in parts_for_tokenising(model) for parameter in part.parameters()]
    figures = {"baseline_bytes": baseline, "peak_bytes": peak}
    figures["weight_bytes_used"] = sum(parameter.nbytes for parameter in used)
    figures["weight_bytes_loaded"] = sum(parameter.nbytes for parameter in model.parameters())
    print(json.dumps(figures))


def measure_memory(checkpoint: Path, dtype: str, threads: int) -> dict:
    """Return what [`report_memory`] measures in a fresh process, as ratios to the weights."""
    figures = measure_in_fresh_process(
        __file__, "--memory-of", str(checkpoint), "--dtypes", dtype, "--threads", str(threads)
    )
    over_baseline = figures["peak_bytes"] - figures["baseline_bytes"]
    figures["ratio_to_weights_used"] = over_baseline / figures["weight_bytes_used"]
    figures["ratio_to_weights_loaded"] = over_baseline / figures["weight_bytes_loaded"]
    print(
        f"memory {dtype}, batch 1, loading included: peak - baseline = {over_baseline / 2**20:.0f} MiB = "
        f"{figures['ratio_to_weights_used']:.3f} of the weights that tokenising uses, "
        f"{figures['ratio_to_weights_loaded']:.3f} of all weights loaded",
        flush=True,
    )
    return figures


def measure_speed(arguments, model: SeedModel, dtype: str, label: str, flops: dict[str, int], images: torch.Tensor):
    """
    Measure images per second, share of the matmul peak, and time beside the vision model alone, for each batch size.

    Every round takes the next images, so that the rounds of small batches cover what a large one tokenises at once.

    Returns:
        The figures by batch size, and the vectors before the quantizer: `{(batch, image): (num_codes, code_dim)}`.
    """
    device = arguments.device
    size = arguments.matmul_size or (512 if arguments.size == "toy" else 8192 if device == "cuda" else 4096)
    matmul = Matmul(size, getattr(torch, dtype), device)
    clocks = ("wall",) if device == "cuda" else ("wall", "cpu")
    encode, tokenize = model.vision_model, model.get_image_tokens
    if label.endswith("compiled"):
        encode, tokenize = (torch.compile(task, dynamic=False) for task in (encode, tokenize))
    figures, encoded, current = {}, {}, {}
    hook = model.encode_layer.register_forward_hook(lambda module, inputs, output: current.update(output=output))
    with torch.no_grad():
        for batch, rounds in zip(arguments.batch_sizes, arguments.rounds):
            # The warm-up has the batch's own shape where that is cheap or compiles, and batch 1 otherwise.
            warm_up = images[: batch if device == "cuda" or label.endswith("compiled") else 1].to(device)
            matmul(), encode(warm_up), tokenize(warm_up)
            timings = {}
            for turn in range(rounds):
                chosen = [(turn * batch + i) % len(images) for i in range(batch)]
                pixels = images[chosen].to(device)
                tasks = {"matmul": matmul, "vision": lambda: encode(pixels), "tokenizer": lambda: tokenize(pixels)}  # noqa: B023
                for name, values in interleave(tasks, 1, device).items():
                    timings.setdefault(name, []).extend(values)
                if "output" in current:
                    rows = current.pop("output").float().cpu()
                    encoded |= {(batch, image): row for image, row in zip(chosen, rows)}
            row = {"rounds": rounds}
            for clock in clocks:
                seconds = median_time(timings["tokenizer"], clock)
                row[f"images_per_second_{clock}"] = batch / seconds
                row[f"matmul_gflops_{clock}"] = matmul.flops / median_time(timings["matmul"], clock) / 1e9
                share = median_ratio(timings["matmul"], timings["tokenizer"], clock)
                row[f"matmul_peak_share_{clock}"] = share * batch * flops["tokenizer"] / matmul.flops
                share = median_ratio(timings["matmul"], timings["vision"], clock)
                row[f"matmul_peak_share_of_vision_{clock}"] = share * batch * flops["vision"] / matmul.flops
                row[f"ratio_to_vision_{clock}"] = median_ratio(timings["tokenizer"], timings["vision"], clock)
                print(
                    f"speed {dtype} {label} batch {batch}, {rounds} rounds, {clock} time: "
                    f"{row[f'images_per_second_{clock}']:.3f} images/s, matmul peak "
                    f"{row[f'matmul_gflops_{clock}']:.0f} GFLOP/s, share of it "
                    f"{row[f'matmul_peak_share_{clock}']:.3f} (vision model alone "
                    f"{row[f'matmul_peak_share_of_vision_{clock}']:.3f}), tokenizer / vision model "
                    f"{row[f'ratio_to_vision_{clock}']:.3f}",
                    flush=True,
                )
            figures[batch] = row
    hook.remove()
    return figures, encoded


def calibrated_codebook(encoded: dict, config: SeedConfig) -> SeedVectorQuantizer:
    """
    Return a codebook drawn from a normal distribution with the mean and covariance of the vectors that it tells apart.

    At its random start all codes lie near the origin, so that every image gets nearly the same codes, which would agree
    trivially.
    """
    vectors = torch.cat(list(encoded.values())).double()
    centred = vectors - vectors.mean(dim=0)
    # Any square root of the covariance serves to draw with it.
    _, singular_values, directions = torch.linalg.svd(centred, full_matrices=False)
    spread = singular_values[:, None] * directions / len(vectors) ** 0.5
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(config.codebook_size, len(spread), generator=generator, dtype=torch.float64)
    quantizer = SeedVectorQuantizer(config.codebook_size, config.code_dim)
    with torch.no_grad():
        quantizer.codebook.weight.copy_(vectors.mean(dim=0) + noise @ spread)
    return quantizer


def measure_agreement(encoded: dict[str, dict], config: SeedConfig) -> dict:
    """
    Measure the share of equal codes between batch sizes and between runs (a run is a dtype and an attention).

    The smaller batches of a run are compared with its largest, and the largest of each run with that of the first run.
    A code that differs is a near-tie if the two codes nearest to the reference's vector are less than NEAR_TIE apart.
    """
    runs: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
    for run, rows in encoded.items():
        for (batch, image), row in rows.items():
            runs.setdefault((run, batch), {})[image] = row
    first, largest = next(iter(encoded)), max(batch for _, batch in runs)
    quantizer = calibrated_codebook(runs[first, largest], config)
    figures = {"comparisons": {}}
    codes = nearest_codes(quantizer, torch.float32, torch.stack(list(runs[first, largest].values())))
    usage = codebook_usage(torch.bincount(codes.flatten(), minlength=config.codebook_size))
    figures["reference_perplexity"] = usage["perplexity"]
    print(f"agreement: {codes.numel()} codes of {first} batch {largest}, perplexity {usage['perplexity']:.0f}")
    for run, batch in runs:
        other = (run, largest) if batch != largest else (first, largest)
        if (run, batch) == other:
            continue
        row = compare(quantizer, runs[run, batch], runs[other], run, other[0])
        name = f"{run} batch {batch} vs {other[0]} batch {largest}"
        figures["comparisons"][name] = row
        print(
            f"agreement of {name}: {1 - row['differing'] / row['compared']:.4f} of {row['compared']} codes; "
            f"{row['differing']} differ, {row['near_ties']} of them near-ties (margin < {NEAR_TIE}), their "
            f"largest margin {row['largest_margin_of_differing']:.1e} (median of all {row['median_margin']:.1e}); "
            f"error before the quantizer {row['relative_error']:.1e} of the spread",
            flush=True,
        )
    return figures


def compare(quantizer: SeedVectorQuantizer, rows: dict, expected_rows: dict, run: str, expected_run: str) -> dict:
    """Count the codes that differ between two runs on the images that both tokenised, and return their margins."""
    shared = [image for image in rows if image in expected_rows]
    vectors = torch.stack([rows[image] for image in shared])
    expected = torch.stack([expected_rows[image] for image in shared])
    dtype, expected_dtype = (getattr(torch, name.split()[0]) for name in (run, expected_run))
    differs = nearest_codes(quantizer, dtype, vectors) != nearest_codes(quantizer, expected_dtype, expected)
    distances = torch.cdist(expected.double(), quantizer.codebook.weight.detach().double()[None]).square()
    nearest = distances.topk(2, dim=-1, largest=False).values
    margins = nearest[..., 1] / nearest[..., 0] - 1
    spread = expected - expected.mean(dim=(0, 1))
    return {
        "compared": differs.numel(),
        "differing": int(differs.sum()),
        "near_ties": int((margins[differs] < NEAR_TIE).sum()),
        "largest_margin_of_differing": float(margins[differs].max()) if differs.any() else 0.0,
        "median_margin": float(margins.median()),
        "relative_error": float((vectors - expected).norm() / spread.norm()),
    }


def nearest_codes(quantizer: SeedVectorQuantizer, dtype: torch.dtype, vectors: torch.Tensor) -> torch.Tensor:
    """Return the codes by a codebook that is rounded to `dtype`, as in a model that was loaded in it."""
    rounded = SeedVectorQuantizer(quantizer.codebook_size, quantizer.code_dim).to(dtype)
    rounded.load_state_dict(quantizer.state_dict())
    return rounded.nearest_codes(vectors)


def save_checkpoint(config: SeedConfig, folder: Path, dtype: str) -> Path:
    checkpoint = folder / f"seed-random-{dtype}"
    if not (checkpoint / "config.json").exists():
        torch.manual_seed(0)
        SeedModel(config).to(getattr(torch, dtype)).save_pretrained(checkpoint)
    return checkpoint


def run(arguments: argparse.Namespace, scratch: Path) -> dict:
    config = build_config(arguments.size)
    flops = count_flops(config)
    images = make_images(max(arguments.batch_sizes), config.vision_config.image_size)
    figures = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": arguments.device}
    figures |= {"flops_per_image": flops, "memory": {}, "speed": {}}
    print(f"per image: {flops['tokenizer'] / 1e9:.4g} GFLOP, of these {flops['vision'] / 1e9:.4g} in the vision model")
    encoded = {}
    for dtype in arguments.dtypes:
        checkpoint = save_checkpoint(config, scratch, dtype)
        if arguments.device == "cpu":
            figures["memory"][dtype] = measure_memory(checkpoint, dtype, torch.get_num_threads())
        for attention in arguments.vision_attention:
            model = load(checkpoint, dtype, arguments.device, attention)
            for label in (attention, f"{attention} compiled") if arguments.compile else (attention,):
                speed, vectors = measure_speed(arguments, model, dtype, label, flops, images)
                figures["speed"][f"{dtype} {label}"] = speed
                if vectors:
                    encoded[f"{dtype} {label}"] = vectors
            del model
    if encoded:
        figures["agreement"] = measure_agreement(encoded, config)
    return figures


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    if arguments.memory_of:
        report_memory(arguments.memory_of, arguments.dtypes[0])
        return
    with tempfile.TemporaryDirectory() as temporary:
        figures = run(arguments, arguments.scratch or Path(temporary))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
