"""What the benchmarks share: interleaved timing, ratios by round, the machine's matmul speed, peak memory."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Timing:
    """Seconds of one run: wall time, and the processor time of this process, which other processes do not change."""

    wall: float
    cpu: float


@dataclass
class Matmul:
    """
    A large square matmul, by which everything else is measured: it uses the same library, precision and machine, a
    moment before and after.

    Args:
        size: rows and columns. It should be large enough that a larger one is no faster.
    """

    size: int
    dtype: torch.dtype
    device: str = "cpu"

    def __post_init__(self):
        self.left = torch.randn(self.size, self.size, device=self.device).to(self.dtype)
        self.right = torch.randn(self.size, self.size, device=self.device).to(self.dtype)
        self.flops = 2 * self.size**3

    def __call__(self) -> torch.Tensor:
        return self.left @ self.right


def timed(task: Callable, device: str = "cpu") -> Timing:
    """Run `task` once and time it; on a GPU, wait until the GPU has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    task()
    if device == "cuda":
        torch.cuda.synchronize()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(tasks: dict[str, Callable], rounds: int, device: str = "cpu") -> dict[str, list[Timing]]:
    """Time every task once in a round, A B C A B C, so that a change in the machine's load touches all of them."""
    timings: dict[str, list[Timing]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            timings[name].append(timed(task, device))
    return timings


def median_ratio(numerators: list[Timing], denominators: list[Timing], clock: str) -> float:
    """Return the median over the rounds of numerator / denominator; `clock` is "wall" or "cpu"."""
    return statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in zip(numerators, denominators))


def median_time(timings: list[Timing], clock: str) -> float:
    return statistics.median(getattr(timing, clock) for timing in timings)


def resident_memory() -> dict[str, int]:
    """Return bytes of this process by Linux: `VmRSS` (now) and `VmHWM` (peak); mapped files count where touched."""
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


def measure_in_fresh_process(script: str, *arguments: str) -> dict:
    """Run `script` with `arguments` in a process of its own, and return the JSON that it prints as its last line."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
