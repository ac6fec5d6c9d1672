"""Stable Diffusion's text features, the target of stage II."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPTextModel

from ..decoder_seed import load_decoder_part
from ..repository_seed import SeedRepository

LENGTH = 77  # StableDiffusionPipeline pads and cuts prompts to this many tokens
# The most that a process keeps: 36,000 captions of Stable Diffusion 1.x. The paper's 5 million would be 591 GB.
KEPT_BYTES = 4 * 2**30


class TextFeatures:
    """
    Features of captions by the text encoder of a Stable Diffusion model, in float16.

    A call returns the features of a batch. `keep` computes the features of few captions once. Without it, each whole
    batch is computed when it comes: the same captions in the same batch have the same features to the last bit, so that
    a resumed run repeats them.

    Args:
        decoder: folder or Hub id of the Stable Diffusion model; only its text encoder and tokenizer are read.
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
        """Return the ids of captions, `(captions, 77)`, padded and cut as `StableDiffusionPipeline` does."""
        inputs = self.tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        return inputs.input_ids

    @torch.no_grad()
    def compute(self, caption_ids: torch.LongTensor) -> torch.Tensor:
        """
        Compute the encoder's last hidden state, `(captions, 77, dim)`, in float32 even under autocast.

        Args:
            caption_ids: `(captions, 77)` from `tokenize`, on the device that is to compute.
        """
        self.text_encoder.to(caption_ids.device)
        with torch.autocast(caption_ids.device.type, enabled=False):
            return self.text_encoder(caption_ids).last_hidden_state

    def keep(self, captions: Iterable[str], device: torch.device | str = "cpu", batch_size: int = 64) -> None:
        """Compute the features of all captions on `device` and keep them, unless they take more than `KEPT_BYTES`."""
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
        Return the features of captions, `(captions, 77, dim)` float16, on the device of the ids.

        Args:
            caption_ids: `(captions, 77)` from `tokenize`. If `keep` kept some captions, these must be among them.
        """
        if not self._kept:
            return self.compute(caption_ids).half()
        kept = torch.stack([self._kept[_key(row)] for row in caption_ids.cpu()])
        return kept.to(caption_ids.device)


def _key(caption_ids: torch.LongTensor) -> bytes:
    return caption_ids.numpy().tobytes()


__all__ = ["TextFeatures"]
