"""What this machine does well. The settings here are for commands and training scripts, which own their process."""

import ctypes
import platform

# These constants are from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory(size: int = 2**30) -> None:
    """
    Make glibc keep freed blocks of up to `size` bytes for the next tensor. Without glibc this does nothing.

    By default glibc returns them to the system and gets them back, page by page and zeroed, at every layer. On a
    virtual machine that took longer than the convolutions of seed-tiny's encoder: one core encoded 12 pictures per
    second, and 34 with this setting, in batches of 32. The peak of memory was the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # this is another C library or another system
        return
    # Setting one of them ends glibc's own adaptation of the other, so both are set.
    if mallopt(_M_MMAP_THRESHOLD, size):
        mallopt(_M_TRIM_THRESHOLD, size)


def has_fast_bfloat16() -> bool:
    """
    Return whether the GPU, or the CPU if there is none, has instructions for bfloat16.

    Without them a CPU computes the same numbers, but a product of matrices took a hundred times as long as in float32
    on a CPU with AVX2, and five times as long on one whose AVX-512 lacks the bfloat16 dot products.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported()  # oneDNN's own answer is yes for any AVX-512
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


__all__ = ["has_fast_bfloat16", "keep_freed_memory"]
