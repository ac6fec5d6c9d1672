"""Load an image tokenizer for evaluation: in float32, with its image processor and its text tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.provenance import weight_hash
from ..data.texts import encode_texts, load_text_tokenizer
from ..image_processing_seed import SeedImageProcessorPil
from ..modeling_seed import SeedModel
from ..repository_seed import SeedRepository


@dataclass
class EncodedImages:
    """
    The features and codes of a batch of pictures.

    Args:
        embedding_features: `(batch, projection_dim)`, features of the last causal embedding, or from a bidirectional
            Q-Former `(batch, num_queries, projection_dim)`; None without a text branch, which has the projection.
        code_features: `(batch, projection_dim)`, features of the codes, through the reconstruction decoder; None
            without a codebook, that decoder or a text branch.
        codes: `(batch, num_codes)`; None without a codebook.
        pooled: `(batch, vision_dim)`, L2-normalised mean of the frozen vision model's patch features.
    """

    embedding_features: torch.Tensor | None
    code_features: torch.Tensor | None
    codes: torch.Tensor | None
    pooled: torch.Tensor


class EvaluatedTokenizer:
    """
    A [`SeedModel`] in float32, the dtype in which codes that are scored are made.

    Texts need its text branch and its text tokenizer, codes do not.

    Args:
        name: folder or Hub id of a SEED repository or of an image tokenizer.
        device: the device to run on.

    Raises:
        FileNotFoundError: there is no image tokenizer.
    """

    def __init__(self, name: str | Path, device: str | torch.device = "cpu"):
        self.name = str(name)
        folder = SeedRepository(name).image_tokenizer_folder()
        self._folder = folder
        self.model = SeedModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.image_processor = SeedImageProcessorPil.from_pretrained(folder)
        self._text_tokenizer = None

    def load_text_tokenizer(self):
        """
        Return the text tokenizer of the text branch; the first call loads it.

        Raises:
            FileNotFoundError: the folder holds no text tokenizer.
            ValueError: there is no text branch.
        """
        if self._text_tokenizer is None:
            self._text_tokenizer = load_text_tokenizer(self._folder, self.model.config)
        return self._text_tokenizer

    @property
    def causal(self) -> bool:
        """True if the Q-Former is causal."""
        return self.model.config.qformer_config.causal

    @property
    def has_codes(self) -> bool:
        """True if the model has a codebook."""
        return self.model.config.use_code_branch

    def describe(self) -> dict:
        """Describe the model for the report."""
        return {"name": self.name, "weights_sha256": weight_hash(self.model), "dtype": "float32"}

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> EncodedImages:
        """Return the features and codes of a batch of RGB images, on the CPU."""
        model = self.model
        pixel_values = self.image_processor(list(images), return_tensors="pt")["pixel_values"].to(model.device)
        vision_features = model.get_vision_features(pixel_values)
        embeddings = model.get_causal_embeddings(vision_features=vision_features)
        codes = features = code_features = None
        if self.has_codes:
            codes = model.get_image_tokens(causal_embeddings=embeddings)
            if model.config.use_reconstruction_decoder and model.config.use_text_branch:
                code_features = model.get_image_features(codes=codes).cpu()
            codes = codes.cpu()
        pooled = torch.nn.functional.normalize(vision_features.float().mean(dim=1), dim=-1)
        if model.config.use_text_branch:
            features = model.get_image_features(causal_embeddings=embeddings).cpu()
        return EncodedImages(features, code_features, codes, pooled.cpu())

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """Return L2-normalised features of texts, `(texts, projection_dim)`, on the CPU."""
        return encode_texts(self.model, self.load_text_tokenizer(), texts, batch_size)


def pixel_vector(image: Image.Image) -> np.ndarray:
    """Return a picture as 16 x 16 RGB pixels, `(768,)` in 0 .. 1: a floor that needs no network."""
    small = image.resize((16, 16), Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float32).ravel() / 255
