"""The parts that the scripts for language models share: running a stage, and saving the repository that it makes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from ..files_seed import replacing
from ..modeling_seed_language import SeedLanguageModelMixin
from ..processing_seed import SeedProcessor
from ..repository_seed import DECODER_FOLDER, IMAGE_TOKENIZER_FOLDER, SeedRepository
from .language_examples import LanguageDataset, LanguageFile, LanguageRecipe
from .lora import merge, save_adapter
from .packing import PackingCollator
from .runs import STEP, check_run, file_hash, last_checkpoint, loaded_hash, process_state, recipe_values, steps_of
from .trainer import RunTrainer, training_arguments

# The settings of a processor that belong to the decoder.
DRAWING_SETTINGS = ("guidance_scale", "num_inference_steps")


def check_output(output: str | Path, base_model: str | Path) -> None:
    """
    Check that the trained model is not written over the frozen one, without which its adapter is worthless.

    Raises:
        ValueError: `output` is the folder of `base_model`.
    """
    if Path(base_model).is_dir() and Path(base_model).resolve() == Path(output).resolve():
        raise ValueError(f"--output {output} is the folder of the model that is trained on; name another one.")


def run_language_stage(
    output: str | Path,
    recipe: LanguageRecipe,
    model: PeftModel,
    processor: SeedProcessor,
    files: Sequence[LanguageFile],
    max_steps: int | None = None,
) -> None:
    """
    Train `model`, resuming from the last checkpoint under `output`/checkpoints if there is one.

    Args:
        files: the data for the recipe's tasks.
        max_steps: length of the run in steps, instead of the recipe's epochs.

    Raises:
        ValueError: the checkpoints there are from a run with another recipe, other data, another model or codes of
            another image tokenizer; or FSDP, DeepSpeed or DataParallel is on.
        TrainingDivergedError: a loss or weight is not finite; the last good checkpoint is kept.
    """
    checkpoints = Path(output) / "checkpoints"
    options = training_arguments(checkpoints, recipe.training, remove_unused_columns=False)
    max_length = min(recipe.capacity, model.config.max_position_embeddings)
    dataset = LanguageDataset(files, processor, recipe, max_length, options.seed)
    batch = options.train_batch_size * options.gradient_accumulation_steps * options.world_size
    options.max_steps = steps_of(max_steps, recipe.epochs, dataset.epoch_length, batch)
    dataset.examples = options.max_steps * batch
    if process_state().is_main_process:
        print(f"{dataset.epoch_length} examples per epoch, {options.max_steps} steps of {batch}")
        model.print_trainable_parameters()
    if options.device.type == "cpu" and options.bf16:
        # The backward pass of torch's fused attention is slow there: 5.0 steps of seed-tiny a second, 6.3 without it.
        model.get_base_model().set_attn_implementation("eager")
    pad = processor.tokenizer.pad_token_id
    collator = PackingCollator(processor.tokenizer.eos_token_id if pad is None else pad, recipe.capacity)
    trainer = RunTrainer(model=model, args=options, train_dataset=dataset, data_collator=collator)
    trainer.require_one_model_per_process()
    last = last_checkpoint(checkpoints)
    check_run(Path(output), _fingerprint(recipe, model, files) | {STEP: batch}, last)
    trainer.train(resume_from_checkpoint=last)


def _fingerprint(recipe: LanguageRecipe, model: PeftModel, files: Sequence[LanguageFile]) -> dict[str, object]:
    """Return the values by which [`check_run`] knows a run again."""
    # The LoRA matrices A and the visual modules may be new, and are then drawn at every start. All other weights were
    # loaded; the matrices B are zero, unless the run goes on from an adapter.
    drawn = [
        name
        for name in model.state_dict()
        if any(part in name for part in ("lora_A", "modules_to_save", "original_module"))
    ]
    return recipe_values(recipe) | {
        "model": loaded_hash(model, drawn),
        "codes of": model.get_base_model().config.image_tokenizer_hash,
        "data": [file_hash(file.path) for file in files],
    }


def point_processor_at(processor: SeedProcessor, image_tokenizer: str | Path, output: Path) -> None:
    """
    Point a processor that is to be saved in `output` at the image tokenizer and the decoder of another repository.

    If that repository has a decoder, its settings for drawing (guidance, number of steps) are taken over too.

    Args:
        image_tokenizer: SEED repository or image tokenizer. Without a decoder the language model cannot draw.
    """
    repository = SeedRepository(image_tokenizer)
    processor.image_repository = repository.pointer_from(output, IMAGE_TOKENIZER_FOLDER)
    processor.decoder_repository = repository.pointer_from(output, DECODER_FOLDER)
    if processor.decoder_repository is not None:
        settings = repository.settings()
        for name in DRAWING_SETTINGS:
            setattr(processor, name, settings.get(name))
    processor.repository = None  # its pointers start at `output`, wherever it is saved first


def save_language_model(
    output: str | Path,
    model: PeftModel,
    processor: SeedProcessor,
    base_model: str,
    image_tokenizer: str | Path,
    recipe_path: str | Path,
) -> SeedLanguageModelMixin:
    """
    Save the trained weights alone in `output`/adapter, and the merged model as a SEED repository in `output`.

    Each of the two is saved whole or not at all.

    Args:
        base_model: folder or Hub id of the frozen model.
        image_tokenizer: SEED repository or image tokenizer. The new repository points to it and to its decoder, by
            relative paths to folders or by Hub ids. Where the processor does not say how to draw with that decoder
            (guidance, number of steps), this repository does.

    Returns:
        The merged model. `model` is used up, and `processor` now belongs to `output`.
    """
    output = Path(output)
    known = {name: getattr(processor, name) for name in DRAWING_SETTINGS}
    point_processor_at(processor, image_tokenizer, output)
    for name, value in known.items():
        if value is not None:
            setattr(processor, name, value)
    save_adapter(model, output / "adapter", base_model)
    merged = merge(model).eval()
    merged.config.use_cache = True  # Trainer turned it off; generation would then compute every token anew at each step
    with replacing(output) as partial:
        merged.save_pretrained(partial)
        processor.save_pretrained(partial)
        shutil.copy(recipe_path, partial / "recipe.yaml")
    processor.repository = SeedRepository(output)
    return merged


__all__ = ["check_output", "point_processor_at", "run_language_stage", "save_language_model"]
