"""
Measure how fast vectors are looked up in SEED's codebook, beside `torch.cdist(block, codebook).argmin(1)`.

    python examples/benchmarks/benchmark_quantizer.py --threads 1 --rounds 2            # about 2 CPU minutes
    python examples/benchmarks/benchmark_quantizer.py --vectors 2000 --codes 64 --rounds 1
"""

import argparse
import json
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

from seed.quantization_seed import SeedVectorQuantizer

PEER_ROWS = 4096  # rows of the peer's distance matrix at a time: 128 MB with 8192 codes


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's threads; 1 on a machine that others use too")
    parser.add_argument("--matmul-size", type=int, default=2048)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--memory-of", choices=("seed", "cdist"), help=argparse.SUPPRESS)  # for the fresh processes
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> tuple[SeedVectorQuantizer, torch.Tensor]:
    torch.manual_seed(0)
    quantizer = SeedVectorQuantizer(arguments.codes, arguments.dim).to(arguments.device)
    return quantizer, torch.randn(arguments.vectors, arguments.dim, device=arguments.device)


@torch.no_grad()
def cdist_argmin(quantizer: SeedVectorQuantizer, vectors: torch.Tensor) -> torch.Tensor:
    """Return the nearest codes as the peer finds them."""
    return torch.cat([torch.cdist(rows, quantizer.codebook.weight).argmin(1) for rows in vectors.split(PEER_ROWS)])


def report_memory(arguments: argparse.Namespace) -> None:
    """Print, in a fresh process, the peak of one lookup over the process's size with the vectors in memory."""
    quantizer, vectors = build(arguments)
    baseline = resident_memory()["VmRSS"]
    quantizer.nearest_codes(vectors) if arguments.memory_of == "seed" else cdist_argmin(quantizer, vectors)
    print(json.dumps({"over_baseline_bytes": resident_memory()["VmHWM"] - baseline}))


def measure_memory(arguments: argparse.Namespace, which: str) -> int:
    """Return the bytes that a lookup needs at its peak, measured in a fresh process."""
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("vectors", "codes", "dim")]
    threads = f"--threads={torch.get_num_threads()}"
    return measure_in_fresh_process(__file__, "--memory-of", which, threads, *sizes)["over_baseline_bytes"]


def closer_in_float64(quantizer, vectors, ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, int]:
    """Count how often each found the code that is nearer in float64, where the two disagree."""
    rows = (ours != theirs).nonzero()[:, 0]
    codebook = quantizer.codebook.weight.detach().double()
    chosen = vectors[rows].double()
    distance = (chosen - codebook[ours[rows]]).square().sum(1) - (chosen - codebook[theirs[rows]]).square().sum(1)
    return {"differing": len(rows), "ours_nearer": int((distance < 0).sum()), "peer_nearer": int((distance > 0).sum())}


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        report_memory(arguments)
        return
    quantizer, vectors = build(arguments)
    matmul = Matmul(arguments.matmul_size, torch.float32, arguments.device)
    found = {}
    tasks = {
        "matmul": matmul,
        "seed": lambda: found.update(seed=quantizer.nearest_codes(vectors)),
        "cdist": lambda: found.update(cdist=cdist_argmin(quantizer, vectors)),
    }
    matmul(), quantizer.nearest_codes(vectors[:PEER_ROWS]), cdist_argmin(quantizer, vectors[:PEER_ROWS])
    timings = interleave(tasks, arguments.rounds, arguments.device)

    figures = {"vectors": arguments.vectors, "codes": arguments.codes, "dim": arguments.dim}
    figures |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": arguments.device}
    flops = 2 * arguments.vectors * arguments.codes * arguments.dim
    for clock in ("wall",) if arguments.device == "cuda" else ("wall", "cpu"):
        for name in ("seed", "cdist"):
            share = median_ratio(timings["matmul"], timings[name], clock) * flops / matmul.flops
            figures[f"{name}_seconds_{clock}"] = median_time(timings[name], clock)
            figures[f"{name}_matmul_peak_share_{clock}"] = share
        figures[f"ratio_to_cdist_{clock}"] = median_ratio(timings["seed"], timings["cdist"], clock)
        print(
            f"lookup of {arguments.vectors} x {arguments.dim} in {arguments.codes} codes, {arguments.rounds} rounds, "
            f"{clock} time: seed {figures[f'seed_seconds_{clock}']:.2f} s, "
            f"cdist {figures[f'cdist_seconds_{clock}']:.2f} s, seed / cdist {figures[f'ratio_to_cdist_{clock}']:.3f}, "
            f"share of the matmul peak {figures[f'seed_matmul_peak_share_{clock}']:.3f} (cdist "
            f"{figures[f'cdist_matmul_peak_share_{clock}']:.3f})",
            flush=True,
        )
    figures |= closer_in_float64(quantizer, vectors, found["seed"], found["cdist"])
    print(
        f"{figures['differing']} codes differ from cdist's; in float64 ours is nearer in {figures['ours_nearer']}, "
        f"the peer's in {figures['peer_nearer']}"
    )
    if arguments.device == "cpu":
        matrix = 4 * arguments.vectors * arguments.codes
        for name in ("seed", "cdist"):
            peak = figures[f"{name}_memory_bytes"] = measure_memory(arguments, name)
            figures[f"{name}_memory_ratio_to_full_matrix"] = peak / matrix
            print(f"memory of {name}: {peak / 2**20:.0f} MiB over the baseline, {peak / matrix:.4f} of a full matrix")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
