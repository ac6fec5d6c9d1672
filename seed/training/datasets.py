"""The examples that the stages train on: each is a function of the seed and its position, so that a run can resume."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..data.images import InvalidImageError
from .feature_cache import MAX_BROKEN, FeatureCache

logger = logging.getLogger(__name__)


@dataclass
class PictureSource:
    """
    Pictures with captions, either opened when needed or read from a feature cache.

    Args:
        captions: for each picture its captions; the first is its name.
        concepts: for each picture what it shows; pictures of one concept are positives of each other.
        cache: the features of the pictures; None trains from the pictures themselves.
        images: one function per picture that returns it; needed without a cache.
        identity: says which pictures they are, e.g. by a hash of their ids, for `run_stage`.
        broken: numbers of the pictures that did not open when their turn came; filled while the source is read.
    """

    captions: Sequence[Sequence[str]]
    concepts: Sequence[str]
    cache: FeatureCache | None = None
    images: Sequence[Callable[[], Image.Image]] | None = None
    identity: str = ""
    broken: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.captions)


class RunDataset(Dataset):
    """
    All examples of a training run, in order: position p is picture `order[p]` of epoch p // pictures.

    Which picture, view and caption stand at a position depends on the seed and the position only. A run that resumes at
    position p therefore goes on exactly as it would have, without stored state.

    A picture that does not open when its turn comes is replaced by the next one in order, so that one file in a million
    does not end a run of days. A warning names it once in each process that loads pictures, with the number of such
    pictures so far. After `MAX_BROKEN` of them in a row the error is raised.

    Args:
        sources: the data, which are mixed; every picture comes once per epoch.
        examples: length of the run.
        first_caption_probability: how often the first caption is taken; else one of all, evenly.
    """

    def __init__(
        self, sources: Sequence[PictureSource], examples: int, seed: int = 0, first_caption_probability: float = 0.5
    ):
        self.sources = list(sources)
        self.examples = examples
        self.seed = seed
        self.first_caption_probability = first_caption_probability
        self.offsets = np.cumsum([0] + [len(source) for source in sources])
        numbers = {concept: i for i, concept in enumerate(sorted({c for s in sources for c in s.concepts}))}
        self.groups = [[numbers[concept] for concept in source.concepts] for source in sources]
        self._order: tuple[int, np.ndarray] | None = None
        if not self.offsets[-1]:
            raise ValueError("There are no pictures to train on; check --data.")

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, position: int) -> dict:
        epoch, place = divmod(position, int(self.offsets[-1]))
        order = self._epoch_order(epoch)
        for next_place in range(place, place + MAX_BROKEN):
            number = int(order[next_place % len(order)])
            which = int(np.searchsorted(self.offsets, number, side="right")) - 1
            picture = number - int(self.offsets[which])
            try:
                return self._example(which, picture, position)
            except InvalidImageError as error:
                self._report(which, picture, error)
                last = error
        raise last

    def _report(self, which: int, picture: int, error: InvalidImageError) -> None:
        broken = self.sources[which].broken
        if picture not in broken:
            broken.add(picture)
            logger.warning(
                "%s The next picture is trained on in its place. %d of %d pictures are left out so far.",
                error, sum(len(source.broken) for source in self.sources), self.offsets[-1],
            )  # fmt: skip

    def _example(self, which: int, picture: int, position: int) -> dict:
        source = self.sources[which]
        rng = np.random.default_rng((self.seed, 1, position))
        captions = source.captions[picture]
        first = rng.random() < self.first_caption_probability
        example = {
            "caption": captions[0 if first else rng.integers(len(captions))],
            "group": self.groups[which][picture],
            "source": which,
            "picture": picture,
        }
        if source.cache is None:
            example["image"] = source.images[picture]()
        else:
            view = int(rng.integers(source.cache.views))
            example[source.cache.argument] = source.cache.get(picture, view)
        return example

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, 0, epoch)).permutation(int(self.offsets[-1])))
        return self._order[1]


class ContrastiveCollator:
    """
    Collator that makes a batch for pretraining and stage I of the examples of a [`RunDataset`].

    Args:
        tokenizer: the tokenizer of the text branch.
        image_processor: needed where the examples hold pictures.
        max_length: tokens to which captions are cut.
    """

    def __init__(self, tokenizer, image_processor=None, max_length: int = 32):
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.max_length = max_length

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = dict(
            self.tokenizer(
                [example["caption"] for example in examples],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
                return_token_type_ids=False,
            )
        )
        batch["groups"] = torch.tensor([example["group"] for example in examples])
        return batch | collate_images(examples, self.image_processor)


class QuantizationCollator:
    """
    Collator that makes a batch for stage II of the examples of a [`RunDataset`].

    Args:
        sources: the sources of the data set. The fixed caption of a picture is its first.
        tokenize: turns captions into ids, `(captions, 77)`. They stand in the batch as `caption_ids`: the trainer makes
            features of them on its accelerator.
        image_processor: needed where the examples hold pictures.
    """

    def __init__(
        self,
        sources: Sequence[PictureSource],
        tokenize: Callable[[list[str]], torch.LongTensor],
        image_processor=None,
    ):
        self.sources = list(sources)
        self.tokenize = tokenize
        self.image_processor = image_processor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        captions = [self.sources[example["source"]].captions[example["picture"]][0] for example in examples]
        return {"caption_ids": self.tokenize(captions)} | collate_images(examples, self.image_processor)


def collate_images(examples: list[dict], image_processor) -> dict[str, torch.Tensor]:
    """Return the images of a batch: cached `vision_features` or `causal_embeddings`, else new `pixel_values`."""
    for name in ("vision_features", "causal_embeddings"):
        if name in examples[0]:
            return {name: torch.stack([example[name] for example in examples]).float()}
    return dict(image_processor([example["image"] for example in examples], return_tensors="pt"))
