"""Stable Diffusion's text features, the target of stage II."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPTextModel

from ..decoder_seed import load_decoder_part
from ..repository_seed import SeedRepository

LENGTH = 77  # tokens to which StableDiffusionPipeline pads and cuts
# Features kept by a process, at most: 36,000 captions of Stable Diffusion 1.x. The paper's 5 million would be 591 GB.
KEPT_BYTES = 4 * 2**30


class TextFeatures:
    """
    Features of captions by the text encoder of a Stable Diffusion model, in float16.

    A call gives those of a batch. Few captions are computed once, by `keep`. Without it each batch is computed as it
    comes and all of it: the same captions in the same batch have the same features to the last bit, so that a resumed
    run repeats them.

    Args:
        decoder: folder or Hub id of the Stable Diffusion model; only its text encoder is read.
    """

    def __init__(self, decoder: str | Path):
        folder = SeedRepository(decoder).fetch(["text_encoder/*", "tokenizer/*"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = load_decoder_part(folder / "text_encoder", torch.float32, model_class=CLIPTextModel).eval()
        self._kept: dict[bytes, torch.Tensor] = {}

    @property
    def dim(self) -> int:
        """Width of the features, 768 for Stable Diffusion 1.x."""
        return self.text_encoder.config.hidden_size

    def tokenize(self, captions: list[str]) -> torch.LongTensor:
        """`(captions, 77)`, padded as `StableDiffusionPipeline` pads."""
        inputs = self.tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        return inputs.input_ids

    @torch.no_grad()
    def compute(self, caption_ids: torch.LongTensor) -> torch.Tensor:
        """
        `(captions, 77, dim)`, the encoder's last hidden state, float32 under autocast too.

        Args:
            caption_ids: `(captions, 77)` of `tokenize`; they say on which device to compute.
        """
        self.text_encoder.to(caption_ids.device)
        with torch.autocast(caption_ids.device.type, enabled=False):
            return self.text_encoder(caption_ids).last_hidden_state

    def keep(self, captions: Iterable[str], device: torch.device | str = "cpu", batch_size: int = 64) -> None:
        """Computes the features of all captions on `device` and keeps them, unless they are more than `KEPT_BYTES`."""
        captions = sorted(set(captions))
        if len(captions) * LENGTH * self.dim * torch.float16.itemsize > KEPT_BYTES:
            return
        for start in range(0, len(captions), batch_size):
            ids = self.tokenize(captions[start : start + batch_size])
            features = self.compute(ids.to(device)).half().cpu()
            # Copies, so that one caption does not keep its whole batch alive.
            self._kept.update((_key(row), rows.clone()) for row, rows in zip(ids, features))

    def __call__(self, caption_ids: torch.LongTensor) -> torch.Tensor:
        """
        `(captions, 77, dim)` float16, on the device of the ids.

        Args:
            caption_ids: `(captions, 77)` of `tokenize`; of kept captions, if any were kept.
        """
        if not self._kept:
            return self.compute(caption_ids).half()
        kept = torch.stack([self._kept[_key(row)] for row in caption_ids.cpu()])
        return kept.to(caption_ids.device)


def _key(caption_ids: torch.LongTensor) -> bytes:
    return caption_ids.numpy().tobytes()


__all__ = ["TextFeatures"]
