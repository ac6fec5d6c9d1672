"""Stable Diffusion's text features, the target of stage II."""

from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, CLIPTextModel


class TextFeatures:
    """
    Features of captions by the text encoder of a Stable Diffusion model, computed once per caption.

    Args:
        decoder: folder or Hub id of the Stable Diffusion model; only its text encoder is read.
    """

    def __init__(self, decoder: str | Path):
        folder = Path(decoder)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(decoder), allow_patterns=["text_encoder/*", "tokenizer/*"]))
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self._features: dict[str, torch.Tensor] = {}

    @property
    def dim(self) -> int:
        """Width of the features, 768 for Stable Diffusion 1.x."""
        return self.text_encoder.config.hidden_size

    @torch.no_grad()
    def compute(self, captions: list[str]) -> torch.Tensor:
        """`(captions, 77, dim)`, the encoder's last hidden state."""
        inputs = self.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return self.text_encoder(inputs.input_ids).last_hidden_state

    def prepare(self, captions: Iterable[str], batch_size: int = 64) -> None:
        """Computes and keeps the features of all captions, in float16."""
        missing = sorted(set(captions) - self._features.keys())
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            # Copies, so that one caption does not keep its whole batch alive.
            self._features.update(zip(batch, (row.clone() for row in self.compute(batch).half())))

    def __getitem__(self, caption: str) -> torch.Tensor:
        """`(77, dim)` float16 of a prepared caption."""
        return self._features[caption]
