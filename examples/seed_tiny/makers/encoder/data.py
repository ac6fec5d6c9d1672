"""The batches of `train_encoder.py`: each a function of the seed and the step alone, so a resumed run repeats none.

A step has two pictures of each of its concepts, in two drawing styles where there are two, and a caption of each.
"""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from seed.data.augmentation import augment
from seed.data.image_text import load_image_text
from seed.data.images import load_image

from .recipe import EncoderRecipe

FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


@dataclass(frozen=True)
class Picture:
    """One training picture: what opens it, its drawing style and its captions, the first being its name."""

    image: dict
    style: str
    captions: tuple[str, ...]


def load_pictures(path: str | Path) -> dict[str, list[Picture]]:
    """
    Read an image-text table, such as build_emoji.py writes, as a list of pictures for each name.

    Raises:
        ValueError: it holds rows of another split than "train"; evaluation pictures stay out of training.
    """
    dataset = load_image_text(path)
    splits = sorted(set(dataset["split"]) - {"train"}) if "split" in dataset.column_names else []
    if splits:
        raise ValueError(f"{path} holds rows of {splits}; they are for evaluation, train on the train split.")
    styles = dataset["style"] if "style" in dataset.column_names else [str(path)] * len(dataset)
    found: dict[str, list[Picture]] = {}
    for image, style, captions in zip(dataset["image"], styles, dataset["captions"]):
        if captions:
            found.setdefault(captions[0].casefold(), []).append(Picture(image, style, tuple(captions)))
    return found


def degrade(image: Image.Image, rng: random.Random) -> Image.Image:
    """
    Return a picture as files on disks have it: in another size, with a border, or compressed as JPEG.

    Codes of a picture should not depend on these (our choice of kinds and amounts).
    """
    if rng.random() < 0.2:
        border = max(1, round(rng.uniform(0.03, 0.2) * image.width))
        fill = "white" if rng.random() < 0.6 else tuple(rng.randint(0, 255) for _ in range(3))
        image = ImageOps.expand(image, border, fill)
    if rng.random() < 0.4:
        scale = rng.uniform(0.4, 1.0) if rng.random() < 0.5 else 2.0
        size = tuple(max(8, round(scale * side)) for side in image.size)
        image = image.resize(size, rng.choice(FILTERS))
    if rng.random() < 0.25:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(30, 92))
        image = Image.open(buffer).convert("RGB")
    return image


class ConceptSteps(Dataset):
    """
    Item s is the batch of step s: `images` `(pictures, height, width, 3)` in uint8, `captions`, `groups` `(pictures,)`.

    A concept is what pictures of one name show, whatever file they come from; it belongs to the first file that has the
    name. So "dog" of an emoji set is drawn with the icons and the clip art of a dog.

    Args:
        sources: for each `--data` file its pictures by name.

    Raises:
        ValueError: the recipe counts the concepts of another number of files, or more than a file has.
    """

    def __init__(self, sources: Sequence[dict[str, list[Picture]]], recipe: EncoderRecipe):
        if len(sources) != len(recipe.concepts):
            raise ValueError(
                f"The recipe's concepts {recipe.concepts} are for {len(recipe.concepts)} --data files, and "
                f"{len(sources)} were given."
            )
        self.recipe = recipe
        self.pictures: dict[str, list[Picture]] = {}
        self.names: list[list[str]] = []
        for source in sources:
            self.names.append(sorted(source.keys() - self.pictures.keys()))
            for name, pictures in source.items():
                self.pictures.setdefault(name, []).extend(pictures)
        for names, count in zip(self.names, recipe.concepts):
            if count > len(names):
                raise ValueError(f"The recipe wants {count} concepts a step of a file that has {len(names)}.")
        self.numbers = {name: number for number, name in enumerate(sorted(self.pictures))}

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> dict:
        rng = random.Random(f"{self.recipe.seed} {step}")
        images, captions, groups = [], [], []
        for names, count in zip(self.names, self.recipe.concepts):
            for name in rng.sample(names, count):
                for picture in self._pair(name, rng):
                    images.append(self._view(picture, rng))
                    captions.append(self._caption(picture, rng))
                    groups.append(self.numbers[name])
        return {"images": torch.from_numpy(np.stack(images)), "captions": captions, "groups": torch.tensor(groups)}

    def _pair(self, name: str, rng: random.Random) -> list[Picture]:
        """Two pictures in different styles, else two of one style, else one picture twice."""
        pictures = self.pictures[name]
        styles = sorted({picture.style for picture in pictures})
        if len(styles) > 1:
            chosen = rng.sample(styles, 2)
            return [rng.choice([item for item in pictures if item.style == style]) for style in chosen]
        return rng.sample(pictures, 2) if len(pictures) > 1 else pictures * 2

    def _caption(self, picture: Picture, rng: random.Random) -> str:
        first = rng.random() < self.recipe.first_caption_probability
        return picture.captions[0] if first else rng.choice(picture.captions)

    def _view(self, picture: Picture, rng: random.Random) -> np.ndarray:
        image = degrade(augment(load_image(picture.image), rng), rng)
        side = self.recipe.size
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


__all__ = ["ConceptSteps", "Picture", "degrade", "load_pictures"]
