"""What the scripts that train a language model share: the run, and the repository that comes out of it."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from peft import PeftModel
from transformers.trainer_utils import get_last_checkpoint

from ..data.provenance import hash_tensors, write_atomically
from ..modeling_seed_language import SeedLanguageModelMixin
from ..processing_seed import SeedProcessor
from ..repository_seed import DECODER_FOLDER, IMAGE_TOKENIZER_FOLDER, point_to
from .language_examples import LanguageDataset, LanguageFile, LanguageRecipe
from .lora import merge, save_adapter
from .packing import PackingCollator
from .trainer import RunTrainer, training_arguments

logger = logging.getLogger(__name__)

# Beside the checkpoints: of which run they are.
RUN_FILE = "run.json"


def run_language_stage(
    output: str | Path,
    recipe: LanguageRecipe,
    model: PeftModel,
    processor: SeedProcessor,
    files: Sequence[LanguageFile],
    max_steps: int | None = None,
) -> None:
    """
    Trains `model`, resuming from the last checkpoint under `output`/checkpoints if there is one.

    Args:
        files: the data, for the recipe's tasks.
        max_steps: length of the run, instead of the recipe's epochs.

    Raises:
        ValueError: the checkpoints there are of a run with another recipe, other data, another model or codes of
            another image tokenizer; or FSDP or DeepSpeed is on.
        TrainingDivergedError: a loss or weight is not finite; the last good checkpoint is kept.
    """
    checkpoints = Path(output) / "checkpoints"
    options = training_arguments(checkpoints, recipe.training, remove_unused_columns=False)
    max_length = min(recipe.capacity, model.config.max_position_embeddings)
    dataset = LanguageDataset(files, processor, recipe, max_length, options.seed)
    batch = options.train_batch_size * options.gradient_accumulation_steps * options.world_size
    options.max_steps = max_steps or math.ceil(recipe.epochs * dataset.epoch_length / batch)
    dataset.examples = options.max_steps * batch
    if PartialState().is_main_process:
        print(f"{dataset.epoch_length} examples per epoch, {options.max_steps} steps of {batch}")
        model.print_trainable_parameters()
    pad = processor.tokenizer.pad_token_id
    collator = PackingCollator(processor.tokenizer.eos_token_id if pad is None else pad, recipe.capacity)
    trainer = RunTrainer(model=model, args=options, train_dataset=dataset, data_collator=collator)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "FSDP and DeepSpeed are not supported for language models: the visual modules are trained whole beside the "
            "frozen ones, and checkpoints hold the adapter alone. Several GPUs: DDP only (accelerate launch "
            "--multi_gpu)."
        )
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    _check_run(Path(output), _fingerprint(recipe, model, files), last)
    trainer.train(resume_from_checkpoint=last)


def _fingerprint(recipe: LanguageRecipe, model: PeftModel, files: Sequence[LanguageFile]) -> dict[str, object]:
    """What makes a run what it is, by content; where the files lie and what they are called says nothing."""
    values = {f"recipe.{name}": value for name, value in dataclasses.asdict(recipe).items()}
    values |= {f"recipe.training.{name}": value for name, value in values.pop("recipe.training").items()}
    # New LoRA weights (A random, B zero) and new visual modules are drawn at every start; all else is what was loaded.
    # B is of an adapter that goes on.
    loaded = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in ("lora_A", "modules_to_save", "original_module"))
    }
    values |= {"model": hash_tensors(loaded.items()), "codes of": model.get_base_model().config.image_tokenizer_hash}
    values["data"] = [_file_hash(file.path) for file in files]
    return json.loads(json.dumps(values))  # as it reads back


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_run(output: Path, run: dict[str, object], checkpoint: str | None) -> None:
    """Remembers the run in `output`, or compares it with the one that made the checkpoint from which it would go on."""
    path = output / RUN_FILE
    if checkpoint is not None and path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in run.keys() | stored.keys() if run.get(name) != stored.get(name))
        if differing:
            raise ValueError(
                f"{checkpoint} is of another run: it differs in {', '.join(differing)}. Repeat that run's command to "
                f"go on with it; for another run choose another --output or delete {output / 'checkpoints'}."
            )
        return
    if checkpoint is not None:
        logger.warning("%s does not say of which run it is (%s is missing); going on from it.", checkpoint, path)
    if PartialState().is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(run, indent=2) + "\n")


def save_language_model(
    output: str | Path,
    model: PeftModel,
    processor: SeedProcessor,
    base_model: str,
    image_tokenizer: str | Path,
    recipe_path: str | Path,
) -> SeedLanguageModelMixin:
    """
    Saves what was trained alone, in `output`/adapter, and the merged model as a SEED repository, all or nothing.

    Args:
        base_model: folder or Hub id of the frozen model.
        image_tokenizer: SEED repository or image tokenizer, to which the new repository points, and to its decoder: by
            relative paths to folders, or by Hub ids.

    Returns:
        The merged model; `model` is used up, and `processor` is now that of `output`.
    """
    output = Path(output)
    processor.image_repository = point_to(image_tokenizer, IMAGE_TOKENIZER_FOLDER, output)
    # None where an image tokenizer of its own is given: the model captions and answers without.
    processor.decoder_repository = point_to(image_tokenizer, DECODER_FOLDER, output)
    processor.name_or_path = None  # its pointers start at `output`, wherever it is saved first
    save_adapter(model, output / "adapter", base_model)
    merged = merge(model).eval()
    merged.config.use_cache = True  # Trainer has turned it off; generation would read everything again at every token
    partial = output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    processor.save_pretrained(partial)
    shutil.copy(recipe_path, partial / "recipe.yaml")
    for item in partial.iterdir():
        if item.is_dir():  # of an earlier save; os.replace takes the place of files and empty folders only
            shutil.rmtree(output / item.name, ignore_errors=True)
        os.replace(item, output / item.name)
    partial.rmdir()
    processor.name_or_path = str(output)
    return merged


__all__ = ["run_language_stage", "save_language_model"]
