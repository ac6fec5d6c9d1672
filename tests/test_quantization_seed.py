"""The vector quantizer against brute force in float64 and arithmetic by hand."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seed.quantization_seed import LOOKUP_ROWS, SeedVectorQuantizer, codebook_usage, count_codes


def make(codebook, loss_weighting="legacy"):
    codebook = torch.as_tensor(codebook, dtype=torch.float32)
    quantizer = SeedVectorQuantizer(*codebook.shape, loss_weighting)
    with torch.no_grad():
        quantizer.codebook.weight.copy_(codebook)
    return quantizer


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# `offset`: far from the origin, where |z - e|^2 in float32 loses digits; `scale`: codes as the released code
# initialises them, uniform in +-1/8192.
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (5.0, 1.0), (0.0, 1 / 8192)])
def test_nearest_code_is_brute_forces(offset, scale):
    quantizer = make(randn(500, 8) * scale + offset)
    vectors = randn(7, 11, 8, seed=1) + offset
    codes = quantizer.nearest_codes(vectors)
    rows, codebook = vectors.double().flatten(0, 1), quantizer.codebook.weight.double()
    distances = (rows[:, None] - codebook).square().sum(-1)
    best, second = distances.topk(2, largest=False).values.unbind(1)
    near_ties = (second - best) < 2e-6 * rows.norm(dim=1) * codebook.norm(dim=1).max()
    assert codes.shape == (7, 11) and codes.dtype == torch.int64
    assert torch.equal(codes.flatten()[~near_ties], distances.argmin(dim=1)[~near_ties])
    assert near_ties.sum() < 3


def test_first_of_equally_near_codes_wins():
    quantizer = make([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [-0.5, 0.5]])
    assert quantizer.nearest_codes(vectors).tolist() == [1, 1, 1, 2]


def test_straight_through_gradient_and_values():
    quantizer = make(randn(20, 4))
    vectors = randn(2, 3, 4, seed=1).requires_grad_()
    output = quantizer(vectors)
    torch.testing.assert_close(output.quantized, quantizer.codebook.weight[output.codes])
    upstream = randn(2, 3, 4, seed=2)
    (output.quantized * upstream).sum().backward()
    assert torch.equal(vectors.grad, upstream), "the gradient passes unchanged to the encoder"
    assert quantizer.codebook.weight.grad is None, "and does not reach the codebook, which the loss alone moves"


@pytest.mark.parametrize(("weighting", "commitment", "codebook"), [("legacy", 1.0, 0.25), ("standard", 0.25, 1.0)])
def test_loss_by_hand(weighting, commitment, codebook):
    """z = (1, 0) -> e = (2, 0); z = (0, 3) -> e = (0, 1). Squares 1 + 4, over four elements: 1.25."""
    quantizer = make([[2.0, 0.0], [0.0, 1.0], [50.0, 50.0]], weighting)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 3.0]], requires_grad=True)
    output = quantizer(vectors)
    assert output.codes.tolist() == [0, 1]
    assert output.loss.item() == pytest.approx((commitment + codebook) * 1.25)
    output.loss.backward()
    difference = torch.tensor([[-1.0, 0.0], [0.0, 2.0]])
    assert torch.allclose(vectors.grad, commitment * 2 * difference / 4)
    assert torch.allclose(quantizer.codebook.weight.grad[:2], -codebook * 2 * difference / 4)
    assert quantizer.codebook.weight.grad[2].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_distances_are_float32_in_half_precision(dtype, autocast):
    """The codes are closer together than half precision resolves at this distance from the origin."""
    grid = torch.arange(64, dtype=torch.float32)[:, None] / 8 + 8
    quantizer = make(torch.cat([grid, grid], dim=1))
    vectors = quantizer.codebook.weight.detach().clone()
    if not autocast:
        quantizer, vectors = quantizer.to(dtype), vectors.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        output = quantizer(vectors)
    stored = quantizer.codebook.weight.double()
    expected = (vectors.double()[:, None] - stored).square().sum(-1).argmin(dim=1)
    assert torch.equal(output.codes, expected)
    assert output.loss.dtype == torch.float32
    assert output.quantized.dtype == vectors.dtype


class LargestTensor(TorchDispatchMode):
    """A record of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            # Views own no memory.
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.elements = max(self.elements, tensor.numel())
        return result


def test_lookup_never_materialises_all_distances():
    quantizer, vectors = make(randn(8192, 32)), randn(3 * LOOKUP_ROWS, 32, seed=1)
    with LargestTensor() as seen:
        codes = quantizer.nearest_codes(vectors)
    assert len(codes) == len(vectors)
    assert 0 < seen.elements <= LOOKUP_ROWS * 8192
    assert LOOKUP_ROWS * 8192 * 4 <= 2**28, "and one block of them stays small, at any number of vectors"


def test_lookup_in_blocks_equals_lookup_at_once():
    quantizer, vectors = make(randn(16, 4)), randn(2 * LOOKUP_ROWS + 5, 4, seed=1)
    expected = torch.cdist(vectors.double(), quantizer.codebook.weight.double()).argmin(dim=1)
    assert torch.equal(quantizer.nearest_codes(vectors), expected)
    assert quantizer.nearest_codes(vectors[:0]).shape == (0,)


def test_wrong_input():
    quantizer = make(randn(16, 4))
    with pytest.raises(ValueError, match="width 5.*have 4"):
        quantizer.nearest_codes(randn(3, 5))
    with pytest.raises(ValueError, match=r"Code 16 is out of range.*0 \.\. 15"):
        quantizer.code_vectors(torch.tensor([[3, 16]]))
    with pytest.raises(ValueError, match="Code -1"):
        quantizer.code_vectors(torch.tensor([[3, -1]]))
    for wrong in (torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.bool)):
        with pytest.raises(TypeError, match=str(wrong.dtype)):
            quantizer.code_vectors(wrong)
    assert quantizer.code_vectors(torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 4)


def clusters():
    """Twelve tight clusters far apart, 50 vectors each."""
    centres = 10 * randn(12, 4, seed=1)
    return centres, (centres[:, None] + 0.01 * randn(12, 50, 4, seed=2)).reshape(-1, 4)


def test_initialization_puts_the_codes_where_the_data_is():
    centres, vectors = clusters()
    quantizer = make(torch.zeros(48, 4) + 100)
    quantizer.initialize_from_data(vectors, generator=torch.Generator().manual_seed(0))
    distance = (vectors - quantizer.codebook.weight[quantizer.nearest_codes(vectors)]).norm(dim=1)
    assert distance.max() < 0.1, "every vector has a code in its own cluster"
    usage = codebook_usage(torch.bincount(quantizer.nearest_codes(vectors), minlength=48))
    assert usage["usage"] > 0.8

    again = make(torch.zeros(48, 4))
    again.initialize_from_data(vectors, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.codebook.weight, quantizer.codebook.weight), "repeatable by its generator"


def test_one_round_of_lloyd_by_hand():
    """One code for all vectors: after any number of rounds it is their mean."""
    vectors = randn(30, 4)
    quantizer = make(torch.zeros(1, 4))
    quantizer.initialize_from_data(vectors, iterations=2)
    torch.testing.assert_close(quantizer.codebook.weight[0], vectors.mean(dim=0))


def test_no_codebook_starts_from_what_is_not_finite():
    with pytest.raises(ValueError, match="not all finite"):
        make(randn(4, 2)).initialize_from_data(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))


def test_initialization_from_fewer_vectors_than_codes_has_no_copies():
    quantizer = make(torch.zeros(64, 4))
    quantizer.initialize_from_data(randn(10, 4), iterations=1, generator=torch.Generator().manual_seed(0))
    codebook = quantizer.codebook.weight
    assert codebook.isfinite().all()
    assert len(torch.unique(codebook, dim=0)) == 64


def test_revival_moves_dead_codes_onto_vectors_and_no_other():
    quantizer, vectors = make(randn(16, 4)), randn(40, 4, seed=1) + 20
    before = quantizer.codebook.weight.detach().clone()
    dead = torch.zeros(16, dtype=torch.bool)
    dead[[2, 5, 11]] = True
    revived = quantizer.revive_codes(vectors, dead, torch.Generator().manual_seed(0))
    after = quantizer.codebook.weight.detach()
    assert revived == 3
    assert torch.equal(after[~dead], before[~dead])
    rows = [int((vectors == row).all(dim=1).nonzero()) for row in after[dead]]
    assert len(set(rows)) == 3, "three different vectors of the data"
    assert quantizer.revive_codes(vectors, torch.zeros(16, dtype=torch.bool)) == 0
    assert torch.equal(quantizer.codebook.weight, after)
    assert quantizer.codebook.weight.requires_grad


def test_codes_are_counted():
    codes = torch.tensor([[3, 0, 3], [1, 3, 1]])
    assert count_codes(codes, 5).tolist() == [1, 2, 0, 3, 0]
    assert count_codes(codes[:0], 5).tolist() == [0] * 5


def test_usage_and_perplexity_by_hand():
    usage = codebook_usage(torch.tensor([5, 5, 5, 5]))
    assert usage == {"usage": 1.0, "perplexity": pytest.approx(4.0)}
    assert codebook_usage(torch.tensor([7, 0, 0, 0])) == {"usage": 0.25, "perplexity": pytest.approx(1.0)}
    expected = math.exp(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))
    assert codebook_usage(torch.tensor([2, 1, 1, 0])) == {"usage": 0.75, "perplexity": pytest.approx(expected)}


def test_centres_that_stay_empty_are_moved():
    """Nearly all vectors are equal, so the first centres are copies, and all but one of these would stay empty."""
    vectors = torch.tensor([[0.0, 0.0]] * 200 + [[9.0, 0.0], [0.0, 9.0], [9.0, 9.0]] * 2)
    quantizer = SeedVectorQuantizer(4, 2)
    quantizer.initialize_from_data(vectors, iterations=300, generator=torch.Generator().manual_seed(0))
    assert len(quantizer.nearest_codes(vectors).unique()) == 4
