"""SEED's training losses: pure functions, one per equation, computed in float32."""

import torch
import torch.nn.functional as F

# Factors of the commitment term and of the codebook term.
_QUANTIZATION_FACTORS = {"legacy": (1.0, 0.25), "standard": (0.25, 1.0)}


def contrastive_targets(image_groups: torch.Tensor, text_groups: torch.Tensor) -> torch.Tensor:
    """
    Return which texts are positives of which images: those of the same group, in equal shares.

    Args:
        image_groups: `(images,)` integers; pictures of one concept share a number.
        text_groups: `(texts,)` integers of the same numbering. Every image needs at least one text of its group.

    Returns:
        `(images, texts)` float32 rows that sum to one.
    """
    same = (image_groups[:, None] == text_groups[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    all_image_features: torch.Tensor,
    all_text_features: torch.Tensor,
    temperature: torch.Tensor,
    image_targets: torch.Tensor,
    text_targets: torch.Tensor,
    label_smoothing: float = 0.1,
) -> torch.Tensor:
    """
    Compute the image-text contrastive loss (paper, section 3.1; label smoothing 0.1 and a learned temperature as
    released).

    Args:
        image_features: `(batch, dim)` or `(batch, queries, dim)`, L2-normalised. With several queries the one most
            similar to the text counts (BLIP-2).
        text_features: `(batch, dim)`, L2-normalised.
        all_image_features, all_text_features: the features gathered over processes, `(world * batch, ...)`.
        temperature: scalar that divides the similarities.
        image_targets: `(batch, world * batch)`, the target probability of each text given an image.
        text_targets: `(batch, world * batch)`, the target probability of each image given a text.

    Returns:
        A scalar, the mean of the image-to-text and text-to-image cross-entropies.
    """
    temperature = temperature.float()
    image_to_text = query_similarity(image_features, all_text_features) / temperature
    text_to_image = query_similarity(all_image_features, text_features).t() / temperature
    return 0.5 * (
        _soft_cross_entropy(image_to_text, image_targets, label_smoothing)
        + _soft_cross_entropy(text_to_image, text_targets, label_smoothing)
    )


def query_similarity(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """
    Return the cosine similarity of images and texts, `(images, texts)`, from L2-normalised features.

    With `(images, queries, dim)` image features the best query counts (BLIP-2's retrieval protocol).
    """
    with torch.autocast(image_features.device.type, enabled=False):  # it would multiply float32 features in bfloat16
        similarity = image_features.float() @ text_features.float().t()
    return similarity.amax(dim=1) if similarity.dim() == 3 else similarity


def _soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets.float(), label_smoothing=label_smoothing)


def matching_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Compute BLIP-2's image-text matching loss from logits, `(pairs, 2)`, and labels, `(pairs,)`, which are 1 where text
    and image match.
    """
    return F.cross_entropy(logits.float(), labels)


def captioning_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Compute BLIP-2's loss of image-grounded text generation, the cross-entropy of the next word.

    Args:
        logits: `(batch, length, vocab)`; position i predicts the word at i + 1.
        labels: `(batch, length)`; -100 is ignored.
    """
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def quantization_loss(vectors: torch.Tensor, code_vectors: torch.Tensor, weighting: str = "legacy") -> torch.Tensor:
    """
    Compute the vector quantisation loss (VQ-VAE, eq. 3; paper, section 3.2).

    z are the encoder's vectors and e their code vectors. The commitment term |sg(e) - z|^2 moves the encoder, and the
    codebook term |e - sg(z)|^2 moves the codes.

    Args:
        vectors: `(..., code_dim)`.
        code_vectors: `(..., code_dim)`, codebook rows (with gradient to the codebook).
        weighting: the factors of the terms. "legacy", as released, has 1 on the commitment term and 0.25 on the
            codebook term; "standard", as in the VQ-VAE paper, has 0.25 on the commitment term and 1 on the codebook
            term.

    Returns:
        A scalar, averaged over all elements.
    """
    commitment = F.mse_loss(vectors.float(), code_vectors.detach().float())
    codebook = F.mse_loss(code_vectors.float(), vectors.detach().float())
    commitment_factor, codebook_factor = _QUANTIZATION_FACTORS[weighting]
    return commitment_factor * commitment + codebook_factor * codebook


def reconstruction_loss(
    reconstructed: torch.Tensor, causal_embeddings: torch.Tensor, last_weight: float = 0.0
) -> torch.Tensor:
    """
    Compute 1 - cosine similarity of reconstructed and true causal embeddings (paper, eq. 1), the mean over queries.

    Args:
        reconstructed, causal_embeddings: `(batch, num_codes, dim)`.
        last_weight: weight of an additional term of the last query alone; the sum is divided by `1 + last_weight` (our
            choice; 0 in the paper).
    """
    distance = 1 - F.cosine_similarity(reconstructed.float(), causal_embeddings.float(), dim=-1)
    return (distance.mean() + last_weight * distance[:, -1].mean()) / (1 + last_weight)


def generation_loss(generation_embeddings: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """
    Compute the mean squared error between generation embeddings and Stable Diffusion's text features, both
    `(batch, 77, dim)` (paper, eq. 1).
    """
    return F.mse_loss(generation_embeddings.float(), text_features.float())


__all__ = [
    "captioning_loss",
    "contrastive_loss",
    "contrastive_targets",
    "generation_loss",
    "matching_loss",
    "quantization_loss",
    "query_similarity",
    "reconstruction_loss",
]
