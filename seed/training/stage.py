"""The parts that the training scripts of the image tokenizer share: opening data, making models, running a stage."""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModel, set_seed

from ..configuration_seed import SeedConfig
from ..data.augmentation import augment
from ..data.image_text import SkipReport, load_image_text, picture_file_states
from ..data.images import InvalidImageError, load_image
from ..data.provenance import preprocessing_hash
from ..files_seed import replacing, write_atomically
from ..image_processing_seed import SeedImageProcessorPil
from ..modeling_seed import SeedModel
from .datasets import PictureSource, RunDataset
from .feature_cache import build_feature_cache
from .recipes import StageRecipe, load_recipe
from .runs import STEP, check_run, last_checkpoint, process_state, recipe_values, steps_of
from .text_features import TextFeatures
from .trainer import SeedTrainer, training_arguments


@dataclass(frozen=True)
class StageData:
    """
    The image-text data of a stage.

    Args:
        paths: files, folders or Hub ids, see [`load_image_text`].
        extra_paths: more data, for which a recipe has another number of views per picture (`extra_views`).
        split: the split to take of `paths`, where they hold several.
        image_root: the folder of the pictures that the data name by paths; None for the folder of the data.
    """

    paths: Sequence[str | Path]
    extra_paths: Sequence[str | Path] = ()
    split: str | None = None
    image_root: str | Path | None = None

    def load(self) -> list[Dataset]:
        """Load each of `paths`, then each of `extra_paths`."""
        named = [(path, self.split) for path in self.paths] + [(path, None) for path in self.extra_paths]
        return [load_image_text(path, split=split, image_root=self.image_root) for path, split in named]


def read_recipe(path: str) -> StageRecipe:
    """Load a recipe, and set the random state to its seed, so that new weights are the same in every run."""
    recipe = load_recipe(path)
    set_seed(recipe.training.get("seed", 42))
    return recipe


def read_config(init: str, recipe: StageRecipe, use_code_branch: bool) -> SeedConfig:
    """
    Read the configuration of the model that a stage starts from, with the recipe's overrides.

    Raises:
        ValueError: the overrides do not fit the rest.
    """
    config = SeedConfig.from_pretrained(init, use_code_branch=use_code_branch, **recipe.model)
    SeedConfig.from_dict(config.to_dict())  # checks the values, which from_pretrained leaves out for overrides
    return config


def load_vision_model(source: str):
    """
    Load the frozen vision model of a recipe from a folder or a Hub id, as `AutoModel` does.

    Returns:
        The model, or its part `vision_model` where it has one, as SEED, BLIP-2 and CLIP do.
    """
    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    return getattr(model, "vision_model", model)


def create_model(recipe: StageRecipe, vocab_size: int) -> tuple[SeedModel, SeedImageProcessorPil]:
    """
    Make a new [`SeedModel`] around the recipe's pretrained vision model, and its image processor.

    Args:
        recipe: without a `vision_model`, the model gets random weights for `model.vision_config`.
        vocab_size: number of entries of the text branch's tokenizer.
    """
    processor = make_image_processor(recipe)
    settings = dict(recipe.model)
    settings["qformer_config"] = settings.get("qformer_config", {}) | {"vocab_size": vocab_size}
    if recipe.vision_model is None:
        return SeedModel(SeedConfig(use_code_branch=False, **settings)), processor
    vision_model = load_vision_model(recipe.vision_model)
    settings["vision_config"] = vision_model.config.to_dict()
    model = SeedModel(SeedConfig(use_code_branch=False, **settings))
    model.vision_model.load_state_dict(vision_model.state_dict())
    return model, processor


def make_image_processor(recipe: StageRecipe) -> SeedImageProcessorPil:
    """Make SEED's image processor with the vision model's size, mean and deviation, which the recipe may override."""
    own = {} if recipe.vision_model is None else read_preprocessing(recipe.vision_model)
    return SeedImageProcessorPil(**own | recipe.image_processor)


def read_preprocessing(source: str) -> dict:
    """
    Read the size, mean and standard deviation in a vision model's own `preprocessor_config.json`.

    Returns:
        `size` (with `height` and `width`), `image_mean` and `image_std`, as far as the file has them; an empty dict
        without such a file.
    """
    try:
        own, _ = SeedImageProcessorPil.get_image_processor_dict(source)
    except OSError:
        return {}
    found = {name: own[name] for name in ("image_mean", "image_std") if name in own}
    # CLIP's processors scale the shortest edge and crop; SEED's squashes the whole picture to the size of the crop.
    for size in (own.get("size"), own.get("crop_size")):
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            found["size"] = {"height": size["height"], "width": size["width"]}
            break
    return found


def open_sources(
    data: StageData,
    recipe: StageRecipe,
    model: SeedModel,
    processor,
    output: str | Path,
    feature_cache: str | Path | None = None,
) -> list[PictureSource]:
    """
    Open the data of a stage, and their feature caches.

    Rows without a caption, or whose picture has no readable header, are reported and left out. Pictures that turn out
    broken only when they are decoded are reported then: see [`RunDataset`] and [`build_feature_cache`].

    Args:
        recipe: says how many views of each picture the caches hold.
        model, processor: compute the cached features.
        output: folder of the run; a file there remembers the rows that can be used.
        feature_cache: folder of the caches; None trains from the pictures themselves.
    """
    sources = []
    resumes = last_checkpoint(Path(output) / "checkpoints") is not None
    paths = [*data.paths, *data.extra_paths]
    all_views = [recipe.data.views] * len(data.paths) + [recipe.data.extra_views] * len(data.extra_paths)
    for number, (path, dataset, views) in enumerate(zip(paths, data.load(), all_views, strict=True)):
        identity = _identity(dataset)
        memory = Path(output) / f"usable_rows-{number}.json"
        rows = _usable_rows_once(dataset, identity, memory, resumes)
        if len(rows) < len(dataset):  # a run that resumes needs the same rows
            identity = hashlib.sha256(f"{identity} {rows}".encode()).hexdigest()
        dataset = dataset.select(rows)
        images = [_Opener(dataset, row) for row in range(len(dataset))]
        captions = dataset["captions"]
        named = dataset["concept"] if "concept" in dataset.column_names else [None] * len(dataset)
        concepts = [texts[0].casefold() if name is None else str(name) for name, texts in zip(named, captions)]
        source = PictureSource(list(captions), list(concepts), images=images, identity=identity)
        if feature_cache:
            folder = Path(feature_cache) / f"{number}-{Path(path).stem}"
            model.to(process_state().device)
            with process_state().main_process_first():  # the other processes find it finished
                source.cache = build_feature_cache(
                    folder, model, processor, images, views=views, augment=augment, identity=identity
                )
        sources.append(source)
    return sources


def _identity(dataset) -> str:
    """
    Return a hash that tells data sets apart without reading all of their pictures.

    It covers the captions, the ids where there are any, and the bytes of a thousand pictures, so that it notices other
    pictures, or the same ones in another size.
    """
    names = [name for name in ("id", "captions") if name in dataset.column_names]
    digest = hashlib.sha256()
    for values in zip(*(dataset[name] for name in names)):
        digest.update(json.dumps(values).encode())
    for row in range(0, len(dataset), max(1, len(dataset) // 1000)):
        image = dataset[row]["image"]
        content = image.get("bytes")
        if content is None and Path(image.get("path") or "").is_file():
            content = Path(image["path"]).read_bytes()
        digest.update(hashlib.sha256(content or b"").digest())  # broken ones are left out later
    return digest.hexdigest()


def _usable_rows_once(dataset, identity: str, memory: Path, resumes: bool = False) -> list[int]:
    """
    Return `_usable_rows`, remembered in a file of the run's folder, so that resuming does not open every file again.

    Args:
        resumes: whether the run goes on from a checkpoint. It keeps its rows then, even if files have changed or gone
            since: pictures that no longer open are replaced one by one (see [`RunDataset`]).
    """
    known = {"identity": identity, "files": picture_file_states(dataset)}
    with process_state().main_process_first():
        if memory.exists():
            found = json.loads(memory.read_text(encoding="utf-8"))
            rows = found.pop("rows")
            if found == known or resumes and found["identity"] == identity:
                return rows
        rows = _usable_rows(dataset)
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(known | {"rows": rows}))
        return rows


def _usable_rows(dataset) -> list[int]:
    """Return the rows that have a caption and a picture whose header can be read; report the others."""
    report, rows = SkipReport(), []
    # Reading files lets go of Python's lock. Pillow warns of large pictures, which can be used.
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for start in range(0, len(dataset), 256):
            batch = dataset[start : start + 256]
            faults = pool.map(_fault, batch["image"], batch["captions"])
            for row, fault in enumerate(faults, start):
                if fault:
                    where, what, detail = fault
                    report.skip(f"row {row}{where and f', {where}'}", what, detail)
                else:
                    rows.append(row)
                    report.used += 1
    if report.skipped:
        print(report.summary())
    return rows


def _fault(source, captions: list[str]) -> tuple[str, str, str] | None:
    """Return the picture, the fault and its details if a row cannot be trained on, else None; nothing is decoded."""
    if not captions:
        return "", "no caption", ""
    content = source.get("bytes")
    try:
        with Image.open(source["path"] if content is None else io.BytesIO(content)):
            return None
    except Exception:  # what Pillow raises on damaged headers differs by format
        pass
    try:
        load_image(source)  # names the fault
    except InvalidImageError as error:
        return error.source, error.fault, error.detail
    return None


class _Opener:
    def __init__(self, dataset, row: int):
        self.dataset, self.row = dataset, row

    def __call__(self):
        return load_image(self.dataset[self.row]["image"])


@torch.no_grad()
def first_embeddings(model: SeedModel, recipe: StageRecipe, collator, sources: list[PictureSource]) -> torch.Tensor:
    """
    Return the causal embeddings of the run's first pictures, `(n, num_codes, hidden_size)`.

    They are 32 vectors for each code of the codebook and at least 2,048 pictures, or as many as there are.
    """
    model.to(process_state().device)
    wanted = max(2048, 32 * model.config.codebook_size // model.config.num_codes)
    count = min(wanted, sum(len(source) for source in sources))
    dataset = RunDataset(sources, count, recipe.training.get("seed", 42))
    embeddings = []
    for batch in DataLoader(dataset, batch_size=64, collate_fn=collator):
        batch.pop("caption_ids")
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        cached = batch.get("causal_embeddings")
        embeddings.append(model.get_causal_embeddings(**batch) if cached is None else cached)
    return torch.cat(embeddings)


def run_stage(
    output: str | Path,
    recipe: StageRecipe,
    head,
    collator,
    sources: list[PictureSource],
    start: dict[str, str],
    text_features: TextFeatures | None = None,
    max_steps: int | None = None,
) -> None:
    """
    Train `head`, resuming from the last checkpoint under `output` if there is one.

    Args:
        start: hashes of what the run starts from, under names that a user understands.
        text_features: makes stage II's targets of the collator's `caption_ids`.
        max_steps: length of the run in steps, instead of the recipe's epochs.

    Raises:
        ValueError: the checkpoints under `output` are from a run with another recipe, other data or another start; or
            FSDP, DeepSpeed or DataParallel is on.
        TrainingDivergedError: a loss or weight is not finite; the last good checkpoint is kept.
    """
    checkpoints = Path(output) / "checkpoints"
    options = training_arguments(checkpoints, recipe.training, remove_unused_columns=False)
    batch = options.train_batch_size * options.gradient_accumulation_steps * options.world_size
    pictures = sum(len(source) for source in sources)
    options.max_steps = steps_of(max_steps, recipe.epochs, pictures, batch)
    dataset = RunDataset(sources, options.max_steps * batch, options.seed, recipe.data.first_caption_probability)
    trainer = SeedTrainer(
        model=head, args=options, train_dataset=dataset, data_collator=collator, text_features=text_features
    )
    trainer.require_one_model_per_process()
    last = last_checkpoint(checkpoints)
    data = [[source.identity, source.cache.views if source.cache else None] for source in sources]
    start = start | {"image processor": preprocessing_hash(collator.image_processor), STEP: batch}
    check_run(Path(output), recipe_values(recipe) | start | {"data": data}, last)
    trainer.train(resume_from_checkpoint=last)


def save_stage(output: str | Path, model: SeedModel, processor, tokenizer, recipe_path: str | Path) -> None:
    """
    Save the image tokenizer, its image processor, its text tokenizer and the recipe whole (see [`replacing`]).

    The image processor is written under the name that `AutoImageProcessor` resolves with and without torchvision.
    """
    if not process_state().is_main_process:
        return
    with replacing(output) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        shutil.copy(recipe_path, partial / "recipe.yaml")
    print(f"Saved to {output}")


__all__ = [
    "StageData",
    "create_model",
    "first_embeddings",
    "open_sources",
    "read_recipe",
    "run_stage",
    "save_stage",
]
