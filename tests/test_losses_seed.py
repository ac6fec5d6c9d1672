"""Each loss against arithmetic written out here, in plain Python where that is short enough to read."""

import math

import pytest
import torch

from seed.losses_seed import (
    captioning_loss,
    contrastive_loss,
    contrastive_targets,
    generation_loss,
    matching_loss,
    quantization_loss,
    query_similarity,
    reconstruction_loss,
)


def unit(*shape, seed=0):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=-1, keepdim=True)


def cross_entropy(scores, shares, smoothing):
    """Return the cross-entropy of one row; smoothing spreads that part of the target evenly over all classes."""
    log_sum = math.log(sum(math.exp(score) for score in scores))
    targets = [share * (1 - smoothing) + smoothing / len(scores) for share in shares]
    return -sum(target * (score - log_sum) for target, score in zip(targets, scores))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrastive_loss_of_pairs(smoothing):
    images, texts, temperature = unit(4, 6, seed=1), unit(4, 6, seed=2), 0.07
    similarity = [[sum(a * b for a, b in zip(i, t)) / temperature for t in texts.tolist()] for i in images.tolist()]
    shares = [[float(row == column) for column in range(4)] for row in range(4)]
    rows = [cross_entropy(similarity[i], shares[i], smoothing) for i in range(4)]
    columns = [cross_entropy([similarity[i][t] for i in range(4)], shares[t], smoothing) for t in range(4)]
    expected = (sum(rows) / 4 + sum(columns) / 4) / 2

    targets = contrastive_targets(torch.arange(4), torch.arange(4))
    loss = contrastive_loss(images, texts, images, texts, torch.tensor(temperature), targets, targets, smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_with_queries_groups_and_other_processes():
    """This process holds rows 2 and 3 of 6; pictures 2 and 5 show one concept; the best of 3 queries counts."""
    images, texts = unit(6, 3, 8, seed=1), unit(6, 8, seed=2)
    groups = torch.tensor([0, 1, 2, 3, 4, 2])
    own = slice(2, 4)
    best = [
        [max(sum(a * b for a, b in zip(query, text)) for query in image) / 0.1 for text in texts.tolist()]
        for image in images.tolist()
    ]
    shares = {2: [0, 0, 0.5, 0, 0, 0.5], 3: [0, 0, 0, 1.0, 0, 0]}
    rows = [cross_entropy(best[i], shares[i], 0.1) for i in (2, 3)]
    columns = [cross_entropy([best[i][t] for i in range(6)], shares[t], 0.1) for t in (2, 3)]
    expected = (sum(rows) / 2 + sum(columns) / 2) / 2

    targets = contrastive_targets(groups[own], groups)
    assert targets.tolist() == [shares[2], shares[3]]
    loss = contrastive_loss(images[own], texts[own], images, texts, torch.tensor(0.1), targets, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_is_float32_and_reaches_the_temperature():
    images, texts = unit(4, 6, seed=1).half().requires_grad_(), unit(4, 6, seed=2).half()
    temperature = torch.tensor(0.07, requires_grad=True)
    targets = contrastive_targets(torch.arange(4), torch.arange(4))
    loss = contrastive_loss(images, texts, images, texts, temperature, targets, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert temperature.grad != 0 and images.grad.abs().sum() > 0


def test_query_similarity_takes_the_best_query():
    images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.8, 0.6]]])
    texts = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert torch.allclose(query_similarity(images, texts), torch.tensor([[1.0, 0.0], [0.8, -0.6]]))
    assert torch.allclose(query_similarity(images[:, 0], texts), torch.tensor([[1.0, 0.0], [0.6, -0.8]]))


def test_quantization_loss_weightings_by_hand():
    """z - e = (1, -2), (0, 3): both terms are (1 + 4 + 0 + 9) / 4 = 3.5; their gradients differ."""
    vectors = torch.tensor([[2.0, 0.0], [1.0, 4.0]], requires_grad=True)
    codes = torch.tensor([[1.0, 2.0], [1.0, 1.0]], requires_grad=True)
    difference = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    for weighting, commitment, codebook in (("legacy", 1.0, 0.25), ("standard", 0.25, 1.0)):
        loss = quantization_loss(vectors, codes, weighting)
        assert loss.item() == pytest.approx(1.25 * 3.5)
        to_vectors, to_codes = torch.autograd.grad(loss, [vectors, codes])
        assert torch.allclose(to_vectors, commitment * 2 * difference / 4)
        assert torch.allclose(to_codes, -codebook * 2 * difference / 4)


def test_reconstruction_loss_by_hand():
    """Cosines 1, 0 and -1: distances 0, 1 and 2; lengths do not matter."""
    target = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
    reconstructed = torch.tensor([[[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    assert reconstruction_loss(reconstructed, target).item() == pytest.approx(1.0)
    assert reconstruction_loss(target.half(), target.half()).dtype == torch.float32


def test_last_causal_embedding_may_weigh_more():
    target = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    reconstructed = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])  # the first exact, the last orthogonal
    assert reconstruction_loss(reconstructed, target).item() == pytest.approx(0.5)
    assert reconstruction_loss(reconstructed, target, last_weight=3.0).item() == pytest.approx((0.5 + 3 * 1.0) / 4)


def test_generation_loss_by_hand():
    generated, features = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[4.0, 0.0]]])
    assert generation_loss(generated, features).item() == pytest.approx((0 + 4 + 16 + 0) / 4)
    assert generation_loss(generated.half(), features).dtype == torch.float32


def test_matching_loss_by_hand():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.5, 0.5]])
    probabilities = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2)), 0.5]
    expected = -sum(math.log(p) for p in probabilities) / 3
    assert matching_loss(logits, torch.tensor([1, 0, 1])).item() == pytest.approx(expected, rel=1e-5)


def test_captioning_loss_predicts_the_next_word():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3, 4], [1, 4, -100, -100]])
    terms = [
        cross_entropy(logits[row, position].tolist(), [float(word == label) for word in range(5)], 0)
        for row, position, label in [(0, 0, 2), (0, 1, 3), (0, 2, 4), (1, 0, 4)]
    ]
    assert captioning_loss(logits, labels).item() == pytest.approx(sum(terms) / 4, rel=1e-5)
    assert captioning_loss(logits.half(), labels).dtype == torch.float32


def test_query_similarity_is_float32_under_autocast_too():
    images, texts = unit(8, 64).double(), unit(8, 64, seed=1).double()
    with torch.autocast("cpu", torch.bfloat16):
        found = query_similarity(images.float(), texts.float())
    torch.testing.assert_close(found.double(), images @ texts.t(), atol=1e-6, rtol=0)
