"""What the machine is good at, beside what the system itself says of it."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seed.hardware import has_fast_bfloat16
from seed.training import trainer

CPUINFO = Path("/proc/cpuinfo")
# glibc's own account of a tensor of 64 MB: megabytes mapped apart while it lives, megabytes held afterwards.
ACCOUNT = """
import ctypes, sys, torch
from seed.hardware import keep_freed_memory

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
if sys.argv[1] == "keep":
    keep_freed_memory()
before = mallinfo2()
tensor = torch.ones(2**24)
mapped = mallinfo2().hblkhd - before.hblkhd
del tensor
print(mapped // 2**20, (mallinfo2().arena - before.arena) // 2**20)
"""


def has_mallinfo2() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "mallinfo2")
    except (OSError, TypeError):
        return False


@pytest.mark.skipif(not has_mallinfo2(), reason="asks glibc 2.33 or newer")
@pytest.mark.parametrize(("mode", "mapped", "held"), [("default", 64, 0), ("keep", 0, 64)])
def test_freed_memory_is_kept_for_the_next_tensor(mode, mapped, held):
    run = subprocess.run([sys.executable, "-c", ACCOUNT, mode], capture_output=True, text=True, check=True)
    assert [int(part) for part in run.stdout.split()] == [pytest.approx(mapped, abs=2), pytest.approx(held, abs=2)]


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="reads an x86 CPU's flags")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU computes")
def test_bfloat16_is_fast_where_the_cpu_has_its_dot_products():
    assert has_fast_bfloat16() == ("avx512_bf16" in CPUINFO.read_text().split())


@pytest.mark.parametrize("fast", [True, False])
def test_recipes_compute_in_bfloat16_where_it_is_fast(fast, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "has_fast_bfloat16", lambda: fast)
    assert trainer.training_arguments(tmp_path, {"bf16": "auto"}).bf16 is fast
    assert trainer.training_arguments(tmp_path, {"bf16": True}).bf16 is True, "what is asked for is not overruled"
    assert trainer.training_arguments(tmp_path, {}).bf16 is False
