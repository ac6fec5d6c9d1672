"""Features of the frozen vision model, computed once and kept: the encoder is the main cost of every stage."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.images import InvalidImageError
from ..data.provenance import preprocessing_hash, weight_hash
from ..files_seed import write_atomically
from ..hardware import has_fast_bfloat16
from ..modeling_seed import SeedModel

Augmentation = Callable[[Image.Image, random.Random], Image.Image]

# After so many pictures in a row that do not open, a build or a run stops: then it is the disk, not the pictures.
MAX_BROKEN = 100


class FeatureCache:
    """
    Features of pictures on disk, `(pictures, views, positions, dim)` float16, read through a memory map.

    View 0 is the picture itself, the others are augmented; view v of picture i depends on the seed, i and v only.

    Args:
        folder: a folder that [`build_feature_cache`] or [`build_embedding_cache`] wrote.

    Attributes:
        argument: the name under which a model takes the features, "vision_features" or "causal_embeddings".
        dtype: the type in which they were computed, "float32" or "bfloat16".
        broken: the pictures that did not open during the build, by number, with the arguments of their
            [`InvalidImageError`]; their features are zeros.

    Raises:
        FileNotFoundError: the folder holds no cache.
        ValueError: the build was cut short.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.meta = json.loads((self.folder / "meta.json").read_text())
        done, self.broken = _read_progress(self.folder)
        if done < self.meta["pictures"]:
            raise ValueError(
                f"The feature cache {self.folder} holds {done} of {self.meta['pictures']} pictures: run the command "
                "that builds it again, it continues where it stopped."
            )
        self.features = np.load(self.folder / "features.npy", mmap_mode="r")
        self.argument = self.meta["argument"]
        self.dtype = self.meta.get("dtype", "bfloat16")  # caches that do not say so are older

    def __len__(self) -> int:
        return len(self.features)

    @property
    def views(self) -> int:
        """Number of views of each picture."""
        return self.features.shape[1]

    def get(self, picture: int, view: int) -> torch.Tensor:
        """
        Return the features of one view of a picture, `(positions, dim)` float16.

        Raises:
            InvalidImageError: the picture did not open during the build.
        """
        if picture in self.broken:
            raise InvalidImageError(*self.broken[picture])
        return torch.from_numpy(np.array(self.features[picture, view]))


@torch.no_grad()
def build_feature_cache(
    folder: str | Path,
    model: SeedModel,
    image_processor,
    images: Sequence[Callable[[], Image.Image]],
    views: int = 1,
    augment: Augmentation | None = None,
    seed: int = 0,
    batch_size: int = 32,
    autocast: bool | None = None,
    identity: str = "",
    log: Callable[[str], None] = print,
) -> FeatureCache:
    """
    Compute the vision features of `views` views of every picture, or continue a build that was cut short.

    A picture that does not open is left out: the log names it, and the cache remembers it (see
    [`FeatureCache.broken`]).

    Args:
        images: one function per picture that returns it, so that pictures are opened when their turn comes.
        augment: makes views 1, 2, ... from a picture and a random state.
        batch_size: number of views at a time. On a core with AVX2, a small convolutional encoder took 1.4 times as long
            with 64.
        autocast: whether to compute in bfloat16, whose error is far below that of an augmentation; None does so where
            it is faster.
        identity: says which pictures they are, e.g. by a hash of their ids; it is stored with the cache, and compared
            when the cache is used again.

    Raises:
        InvalidImageError: `MAX_BROKEN` pictures in a row do not open.
        ValueError: `folder` holds a cache of another model, preprocessing, seed, number of views or other pictures.
    """
    folder = Path(folder)
    if views > 1 and augment is None:
        raise ValueError(f"views is {views}, but without an augmentation all views would be the same.")
    meta = {
        "argument": "vision_features",
        "vision_model": weight_hash(model.vision_model),
        "image_processor": preprocessing_hash(image_processor),
        "pictures": len(images),
        "identity": identity,
        "views": views,
        "seed": seed,
    }
    if autocast is None:
        autocast = has_fast_bfloat16()
    meta["dtype"] = "bfloat16" if autocast else "float32"
    done, broken = _start_or_continue(folder, meta)
    array, in_a_row = None, 0
    step = max(1, batch_size // views)
    device = model.device
    while done < len(images):
        rows = range(done, min(done + step, len(images)))
        pictures = []
        for row in rows:
            try:
                picture, in_a_row = images[row](), 0
            except InvalidImageError as error:
                in_a_row += 1
                if in_a_row == MAX_BROKEN:
                    raise
                broken[row] = error.args
                log(f"features: {error} The picture is left out.")
                pictures += [Image.new("RGB", (32, 32))] * views  # keep its place in the batch
            else:
                pictures += [_view(picture, view, augment, f"{seed}-{row}-{view}") for view in range(views)]
        pixel_values = image_processor(pictures, return_tensors="pt")["pixel_values"].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            features = model.get_vision_features(pixel_values)
        features = features.to(torch.float16).cpu().numpy().reshape(len(rows), views, *features.shape[1:])
        if array is None:
            array = _open_array(folder, (len(images), *features.shape[1:]))
        features[[row - done for row in rows if row in broken]] = 0
        array[rows.start : rows.stop] = features
        done = rows.stop
        if done == len(images) or (done // step) % 32 == 0:
            array.flush()
            _write_progress(folder, done, broken)
            log(f"features: {done} of {len(images)} pictures ({len(broken)} left out), {views} views each")
    return FeatureCache(folder)


@torch.no_grad()
def build_embedding_cache(
    folder: str | Path, model: SeedModel, source: FeatureCache, batch_size: int = 256, autocast: bool | None = None
) -> FeatureCache:
    """
    Compute the causal embeddings of cached vision features for stage II, which freezes the Causal Q-Former too.

    Raises:
        ValueError: `folder` holds a cache of another model or of other vision features.
    """
    folder = Path(folder)
    meta = source.meta | {"argument": "causal_embeddings", "qformer": weight_hash(model.qformer)}
    if hasattr(model, "vision_layernorm"):
        meta["vision_layernorm"] = weight_hash(model.vision_layernorm)
    if autocast is None:
        autocast = has_fast_bfloat16()
    if autocast:
        meta["dtype"] = "bfloat16"
    if _start_or_continue(folder, meta)[0] == len(source):
        return FeatureCache(folder)
    shape = (len(source), source.views, model.config.num_codes, model.config.qformer_config.hidden_size)
    array = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=np.float16, shape=shape)
    flat_in, flat_out = (part.reshape(-1, *part.shape[2:]) for part in (source.features, array))
    was_training = model.training
    model.eval()
    for start in range(0, len(flat_in), batch_size):
        rows = slice(start, start + batch_size)
        vision_features = torch.from_numpy(np.array(flat_in[rows])).to(model.device, torch.float32)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
            embeddings = model.get_causal_embeddings(vision_features=vision_features)
        flat_out[rows] = embeddings.to(torch.float16).cpu().numpy()
    model.train(was_training)
    array.flush()
    _write_progress(folder, len(source), source.broken)
    return FeatureCache(folder)


def open_embedding_cache(model: SeedModel, source: FeatureCache) -> FeatureCache:
    """Open the causal embeddings of `source`; they are built beside it, under a name of the Causal Q-Former's hash."""
    name = f"{source.folder.name}-causal-embeddings-{weight_hash(model.qformer)[:8]}"
    return build_embedding_cache(source.folder.with_name(name), model, source)


@torch.no_grad()
def codes_of_cache(model: SeedModel, cache: FeatureCache, batch_size: int = 1024) -> torch.LongTensor:
    """
    Return the codes of cached causal embeddings, `(pictures, views, num_codes)`.

    Args:
        cache: the cache that [`open_embedding_cache`] gives for `model`. Its float16 embeddings are what is quantised;
            the codes of its broken pictures mean nothing.
    """
    flat = cache.features.reshape(-1, *cache.features.shape[2:])
    codes = [
        model.get_image_tokens(
            causal_embeddings=torch.from_numpy(np.array(flat[start : start + batch_size])).to(model.device).float()
        ).cpu()
        for start in range(0, len(flat), batch_size)
    ]
    return torch.cat(codes).reshape(len(cache), cache.views, -1)


def _view(picture: Image.Image, view: int, augment: Augmentation | None, key: str) -> Image.Image:
    return picture if view == 0 else augment(picture, random.Random(key))


def _start_or_continue(folder: Path, meta: dict) -> tuple[int, dict[int, list[str]]]:
    """Check that the cache in `folder` is the one that `meta` describes, or begin it; return its progress."""
    meta_file = folder / "meta.json"
    if not meta_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(meta_file, json.dumps(meta, indent=2))
        return 0, {}
    found = json.loads(meta_file.read_text())
    # A cache may go on in another dtype on another machine: the difference is far below that between two views.
    differing = [key for key in meta if key != "dtype" and found.get(key) != meta[key]]
    if differing:
        raise ValueError(
            f"The feature cache {folder} was built with another {', '.join(differing)} "
            f"({ {key: found.get(key) for key in differing} }, now { {key: meta[key] for key in differing} }). "
            "Name another folder or delete this one."
        )
    return _read_progress(folder)


def _read_progress(folder: Path) -> tuple[int, dict[int, list[str]]]:
    """Return how many pictures are done, and which of them did not open."""
    path = folder / "progress.json"
    progress = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"done": 0}
    return progress["done"], {int(row): fault for row, fault in progress.get("broken", {}).items()}


def _write_progress(folder: Path, done: int, broken: Mapping[int, Sequence[str]]) -> None:
    write_atomically(folder / "progress.json", json.dumps({"done": done, "broken": broken}))


def _open_array(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    path = folder / "features.npy"
    if path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
