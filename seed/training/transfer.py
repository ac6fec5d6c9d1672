"""Moves a language model to another image tokenizer, so that it need not learn to see from nothing."""

import torch

from ..modeling_seed import SeedModel
from ..modeling_seed_language import SeedLanguageModelMixin


@torch.no_grad()
def transfer_codes(
    model: SeedLanguageModelMixin,
    image_tokenizer: SeedModel,
    old_codes: torch.LongTensor,
    new_codes: torch.LongTensor,
) -> int:
    """
    Makes a language model one for another image tokenizer, in place: what is embedded and scored for a new code is the
    mean over the old codes in whose places it stands (our choice; the paper trains one tokenizer only). Training goes
    on from there.

    Args:
        model: with the codebook size of `image_tokenizer`, without LoRA; gets code embeddings if it has none.
        image_tokenizer: the new one.
        old_codes, new_codes: `(images, num_codes)`, of the same pictures by either tokenizer; thousands, so that every
            code is seen.

    Returns:
        How many new codes were never seen; they begin as the mean of all.

    Raises:
        ValueError: codes of other shapes, or a codebook of another size.
    """
    size, config = model.config.codebook_size, image_tokenizer.config
    if (config.codebook_size, config.num_codes) != (size, model.config.num_codes):
        raise ValueError(
            f"The image tokenizer has {config.num_codes} codes of {config.codebook_size}, the language model "
            f"{model.config.num_codes} of {size}; only a tokenizer of the same sizes can take the place of its own."
        )
    if old_codes.shape != new_codes.shape or old_codes.shape[-1] != config.num_codes:
        raise ValueError(
            f"The old codes are {tuple(old_codes.shape)}, the new ones {tuple(new_codes.shape)}; expected two times "
            f"(images, {config.num_codes}), of the same pictures in the same order."
        )
    pairs = torch.bincount((new_codes * size + old_codes).flatten(), minlength=size * size).view(size, size).float()
    seen = pairs.sum(dim=1, keepdim=True)
    shares = torch.where(seen > 0, pairs / seen.clamp(min=1), pairs.sum(dim=0) / pairs.sum())

    model.add_code_embeddings()
    embeddings, head = model.visual_embeddings, model.visual_head.weight
    wanted = shares @ (embeddings.projection(embeddings.codebook) + embeddings.codes.weight)
    head[2:] = shares @ head[2:]  # after <img> and </img>
    codebook = image_tokenizer.quantizer.codebook.weight.to(wanted)
    # As much as a projection can say of it (least squares, by how often a code is seen); the rest is each code's own.
    weights = (seen + 1).sqrt()
    inputs = torch.cat([codebook, torch.ones_like(weights)], dim=1)
    solution = torch.linalg.lstsq(inputs * weights, wanted * weights).solution
    embeddings.codebook.copy_(codebook)
    embeddings.projection.weight.copy_(solution[:-1].T)
    embeddings.projection.bias.copy_(solution[-1])
    embeddings.codes.weight.copy_(wanted - inputs @ solution)
    model.config.image_tokenizer_hash = image_tokenizer.codes_hash()
    return int((seen == 0).sum())


__all__ = ["transfer_codes"]
