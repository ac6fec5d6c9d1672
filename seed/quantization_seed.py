"""The vector quantizer: nearest code by Euclidean distance, in float32 whatever the model's dtype."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .losses_seed import quantization_loss

# Rows of the distance matrix that are computed at a time, so that looking up a million vectors never materialises 32 GB
# of distances. With 8192 codes one block has 16 MB, which stay in a processor's last-level cache until the minimum is
# found. That is about 1.4 times as fast as blocks of 128 MB on one core.
LOOKUP_ROWS = 512


@dataclass
class SeedQuantizerOutput(ModelOutput):
    """
    The output of [`SeedVectorQuantizer`].

    Args:
        quantized (`torch.FloatTensor` of shape `(..., code_dim)`): code vectors, with the straight-through gradient.
        codes (`torch.LongTensor` of shape `(...)`): indices of the nearest codebook rows.
        loss (`torch.FloatTensor`): scalar quantisation loss, see [`losses_seed.quantization_loss`].
    """

    quantized: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    loss: torch.FloatTensor | None = None


class SeedCodebook(nn.Embedding):
    """The table of code vectors. As a class of its own it gets its own initialisation from `SeedPreTrainedModel`."""


class SeedVectorQuantizer(nn.Module):
    """
    The VQ codebook of SEED (paper, section 3.2; 8192 x 32).

    Distances and losses are computed in float32. Among equally near codes the first wins, as in the released code.
    Neither the vectors nor the codebook are normalised.

    Args:
        codebook_size: number of codes.
        code_dim: width of a code vector.
        loss_weighting: "legacy" (as released) or "standard", see [`losses_seed.quantization_loss`].

    Example:

    ```python
    import torch

    from seed import SeedVectorQuantizer

    quantizer = SeedVectorQuantizer(codebook_size=64, code_dim=8)
    vectors = torch.randn(1000, 8)
    quantizer.initialize_from_data(vectors)  # k-means
    output = quantizer(vectors)
    output.codes  # (1000,), the nearest code of each vector
    output.quantized  # (1000, 8), their code vectors, with the straight-through gradient
    output.loss  # what to minimise
    ```
    """

    def __init__(self, codebook_size: int, code_dim: int, loss_weighting: str = "legacy"):
        super().__init__()
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.loss_weighting = loss_weighting
        self.codebook = SeedCodebook(codebook_size, code_dim)

    def forward(self, vectors: torch.Tensor) -> SeedQuantizerOutput:
        """
        Quantise vectors and compute the loss.

        Args:
            vectors: `(..., code_dim)`.
        """
        codes = self.nearest_codes(vectors)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors32 = vectors.float()
            code_vectors = nn.functional.embedding(codes, self.codebook.weight.float())
            loss = quantization_loss(vectors32, code_vectors, weighting=self.loss_weighting)
            quantized = vectors32 + (code_vectors - vectors32).detach()
        return SeedQuantizerOutput(quantized=quantized.to(vectors.dtype), codes=codes, loss=loss)

    @torch.no_grad()
    def nearest_codes(self, vectors: torch.Tensor) -> torch.LongTensor:
        """
        Return the index of the nearest code, `(..., code_dim)` -> `(...)`. A block of rows is looked up at a time.

        Raises:
            ValueError: the vectors have another width than the codebook.
        """
        if vectors.shape[-1] != self.code_dim:
            raise ValueError(f"Got vectors of width {vectors.shape[-1]}; the codebook's rows have {self.code_dim}.")
        with torch.autocast(vectors.device.type, enabled=False):
            flat = vectors.reshape(-1, self.code_dim)
            # accelerate's hooks listen to forward; they fetch a codebook that is offloaded or on another device.
            every = torch.arange(self.codebook_size, device=vectors.device)
            codebook = self.codebook(every).to(vectors.device).float()
            # This is |z - e|^2 / 2 without |z|^2 / 2, which is the same for every code and would only cost precision.
            half_norms = 0.5 * codebook.square().sum(dim=1)
            # The codes are written into one tensor. Small results of every block would lie between the large freed
            # blocks, and the allocator could neither return nor reuse these.
            codes = torch.empty(len(flat), dtype=torch.long, device=flat.device)
            for rows, found in zip(flat.split(LOOKUP_ROWS), codes.split(LOOKUP_ROWS)):
                found.copy_(torch.addmm(half_norms, rows.float(), codebook.t(), alpha=-1).argmin(dim=1))
        return codes.reshape(vectors.shape[:-1])

    def code_vectors(self, codes: torch.LongTensor) -> torch.Tensor:
        """
        Return the codebook rows of `codes`, `(...)` -> `(..., code_dim)`.

        Raises:
            TypeError: the codes are not integers. uint8 is refused because it cannot hold SEED's codes.
            ValueError: a code lies outside `0 .. codebook_size - 1`.
        """
        if codes.dtype in (torch.bool, torch.uint8) or codes.is_floating_point() or codes.is_complex():
            raise TypeError(f"Codes have dtype {codes.dtype}; expected integers (torch.int64).")
        if not torch.compiler.is_compiling() and codes.numel():
            low, high = torch.stack(torch.aminmax(codes)).tolist()  # together, so that the device is waited for once
            if low < 0 or high >= self.codebook_size:
                raise ValueError(
                    f"Code {low if low < 0 else high} is out of range; this codebook has codes "
                    f"0 .. {self.codebook_size - 1}. Were the codes made with another image tokenizer, or are they "
                    "token ids of a language model?"
                )
        return self.codebook(codes.long())

    @torch.no_grad()
    def initialize_from_data(
        self, vectors: torch.Tensor, iterations: int = 10, generator: torch.Generator | None = None
    ) -> None:
        """
        Place the codes by k-means where the data is (our choice; the released recipe starts at random).

        Args:
            vectors: `(n, code_dim)` encoder outputs, n > 0; some 16 per code are enough.
            iterations: rounds of Lloyd's algorithm.
            generator: a CPU generator that makes the choice of the first centres repeatable.

        Raises:
            ValueError: the vectors are not all finite.
        """
        vectors = vectors.reshape(-1, self.code_dim).float()
        if not torch.isfinite(vectors).all():
            raise ValueError("The codebook cannot start from these vectors, as they are not all finite.")
        self.codebook.weight.copy_(self._sample(vectors, self.codebook_size, generator))
        for _ in range(iterations):
            codes = self.nearest_codes(vectors)
            counts = count_codes(codes, self.codebook_size)
            sums = torch.zeros_like(self.codebook.weight, dtype=torch.float32).index_add_(0, codes, vectors)
            means = sums / counts.clamp(min=1)[:, None]
            self.codebook.weight.copy_(torch.where(counts[:, None] > 0, means, self.codebook.weight.float()))
            self.revive_codes(vectors, counts == 0, generator)

    @torch.no_grad()
    def revive_codes(
        self, vectors: torch.Tensor, dead: torch.BoolTensor, generator: torch.Generator | None = None
    ) -> int:
        """
        Move dead codes onto randomly drawn vectors, and return their number.

        Args:
            vectors: `(..., code_dim)` encoder outputs.
            dead: `(codebook_size,)`, True for the codes to move.
            generator: a CPU generator that makes the draw repeatable.
        """
        count = int(dead.sum())
        if count:
            rows = self._sample(vectors.reshape(-1, self.code_dim).float(), count, generator)
            self.codebook.weight[dead] = rows.to(self.codebook.weight.dtype)
        return count

    @staticmethod
    def _sample(vectors: torch.Tensor, count: int, generator: torch.Generator | None) -> torch.Tensor:
        order = torch.randperm(len(vectors), generator=generator)
        rows = vectors[order.repeat(-(-count // len(order)))[:count].to(vectors.device)]
        if count > len(vectors):
            # Copies of one vector would tie for ever, and the first would always win. A little noise separates them.
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            rows = rows + 1e-3 * vectors.std() * noise
        return rows


def count_codes(codes: torch.LongTensor, codebook_size: int) -> torch.LongTensor:
    """
    Count how often each code occurs, `(...)` -> `(codebook_size,)`.

    Unlike `torch.bincount` this does not wait for the device.
    """
    codes = codes.flatten()
    return codes.new_zeros(codebook_size).index_add_(0, codes, torch.ones_like(codes))


def codebook_usage(counts: torch.Tensor) -> dict[str, float]:
    """
    Return how much of the codebook is in use.

    Args:
        counts: `(codebook_size,)`, how often each code occurred.

    Returns:
        `usage`, the share of codes that occurred, and `perplexity`, the exponential of their entropy. It lies between 1
        (one code for everything) and the codebook's size (all codes equally often).
    """
    shares = counts.double() / counts.sum().clamp(min=1)
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum()
    return {"usage": float((counts > 0).double().mean()), "perplexity": float(entropy.exp())}


__all__ = ["SeedCodebook", "SeedQuantizerOutput", "SeedVectorQuantizer", "codebook_usage", "count_codes"]
