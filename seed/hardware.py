"""What the machine at hand is good at, for commands and training scripts, which have their process to themselves."""

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory(size: int = 2**30) -> None:
    """
    Makes glibc keep freed blocks of up to `size` bytes for the next tensor; elsewhere does nothing.

    By default it returns them to the system and gets them back, page by page and zeroed, at every layer. On a virtual
    machine that took longer than the convolutions of seed-tiny's encoder (12 pictures per second of one core, 34 with
    this, batches of 32; the peak was the same).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    # Either of them alone would end glibc's own adaptation for the other.
    if mallopt(_M_MMAP_THRESHOLD, size):
        mallopt(_M_TRIM_THRESHOLD, size)


def has_fast_bfloat16() -> bool:
    """
    Whether the GPU, or the CPU where there is none, has instructions for bfloat16 (on x86: AVX-512).

    A CPU without computes the same, but on one with AVX2 a product of matrices took a hundred times as long as in
    float32.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


__all__ = ["has_fast_bfloat16", "keep_freed_memory"]
