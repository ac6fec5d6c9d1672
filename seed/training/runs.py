"""Know a run again: training goes on only from checkpoints of the same run."""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from ..data.provenance import hash_tensors
from ..files_seed import write_json

logger = logging.getLogger(__name__)

# The file beside the checkpoints that says which run made them.
RUN_FILE = "run.json"
# Settings that may change while a run goes on: a user lowers or lengthens them after it diverged.
MAY_CHANGE = {
    f"recipe.training.{name}" for name in ("learning_rate", "warmup_steps", "max_grad_norm", "bf16", "save_total_limit")
}
# The key for the number of examples per step: with another number a resumed run would begin elsewhere in the data.
STEP = "examples per step"


def steps_of(max_steps: int | None, epochs: float, examples: int, batch: int) -> int:
    """
    Return the length of a run in steps.

    Args:
        max_steps: the length that the user asks for; None for the recipe's epochs.
        examples: number of examples in an epoch.
        batch: number of examples in a step, of all processes together.

    Raises:
        ValueError: the user asks for less than one step.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"--max-steps is {max_steps}; expected 1 or more.")
    return math.ceil(epochs * examples / batch) if max_steps is None else max_steps


def process_state() -> PartialState:
    """
    Return the state that says which of the run's processes this is.

    Without a GPU, accelerate would take every process for the only one until `TrainingArguments` have been made: no
    process would wait for the main one, and all would write the same files.
    """
    # The others may wait for hours while the main process computes features; torch gives up after half an hour.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))


def require_one_process() -> None:
    """
    Refuse several processes, for scripts in which each of them would write the same files.

    Raises:
        ValueError: this is one of several processes.
    """
    if (count := process_state().num_processes) > 1:
        raise ValueError(f"This script runs in one process, and {count} were started; start it with python alone.")


def last_checkpoint(folder: str | Path) -> str | None:
    """
    Return the last checkpoint in a folder that was written whole, or None if there is none.

    `Trainer` writes a checkpoint's state last of all: a folder without it is what a kill left of one.
    """
    whole = {}
    for state in Path(folder).glob("checkpoint-*/trainer_state.json"):
        number = state.parent.name.removeprefix("checkpoint-")
        try:
            json.loads(state.read_text(encoding="utf-8"))
            whole[int(number)] = state.parent
        except ValueError:  # cut short, or another folder
            continue
    return str(whole[max(whole)]) if whole else None


def check_run(output: Path, run: dict[str, object], checkpoint: str | None) -> None:
    """
    Compare a run with the one that made the checkpoint from which it would go on, and remember it in `output`.

    Args:
        run: all values that decide what the run learns, in types that JSON has. Files count by their content, not by
            their paths. The number of steps is not among the values, and those in `MAY_CHANGE` may differ.
        checkpoint: the last checkpoint under `output`; None starts afresh.

    Raises:
        ValueError: the checkpoint is of another run; the message names what differs.
    """
    run = json.loads(json.dumps(run))  # as it reads back
    path = output / RUN_FILE
    if checkpoint is not None and path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = {STEP: run.get(STEP)} | stored  # older runs did not store it
        changed = sorted(name for name in run.keys() | stored.keys() if run.get(name) != stored.get(name))
        differing = [name for name in changed if name not in MAY_CHANGE]
        if differing:
            raise ValueError(
                f"{checkpoint} is of another run: it differs in {', '.join(differing)}. Repeat that run's command to "
                f"go on with it; for another run choose another --output or delete {output / 'checkpoints'}."
            )
        if changed:
            logger.warning("%s goes on with other values of %s than it began with.", checkpoint, ", ".join(changed))
    elif checkpoint is not None:
        logger.warning("%s does not say of which run it is (%s is missing); going on from it.", checkpoint, path)
    if process_state().is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, run)


def recipe_values(recipe) -> dict[str, object]:
    """Return a recipe's values for `check_run`, with those of `training` one by one, so that messages can name them."""
    values = {f"recipe.{name}": value for name, value in dataclasses.asdict(recipe).items()}
    return values | {f"recipe.training.{name}": value for name, value in values.pop("recipe.training").items()}


def loaded_hash(model: torch.nn.Module, drawn: Iterable[str] = ()) -> str:
    """
    Return the SHA-256 over the weights that a model has loaded.

    Args:
        drawn: names of the tensors that start at random, as `from_pretrained` gives them in `missing_keys`. They are
            left out, because two machines may draw different numbers from one seed.
    """
    drawn = set(drawn)
    return hash_tensors((name, tensor) for name, tensor in model.state_dict().items() if name not in drawn)


def vocabulary_hash(tokenizer) -> str:
    """Return the SHA-256 over a tokenizer's entries and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 over a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


__all__ = [
    "RUN_FILE",
    "STEP",
    "check_run",
    "file_hash",
    "last_checkpoint",
    "loaded_hash",
    "process_state",
    "recipe_values",
    "require_one_process",
    "steps_of",
    "vocabulary_hash",
]
