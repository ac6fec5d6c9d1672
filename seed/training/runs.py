"""Which run a folder's checkpoints are of: a run goes on from its own only."""

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
from ..files_seed import write_atomically

logger = logging.getLogger(__name__)

# Beside the checkpoints: of which run they are.
RUN_FILE = "run.json"
# What a run may go on with otherwise than it began: what is lowered or lengthened after it diverged.
MAY_CHANGE = {
    f"recipe.training.{name}" for name in ("learning_rate", "warmup_steps", "max_grad_norm", "bf16", "save_total_limit")
}
# Of a run's values, how many examples its steps have: with another number of processes they would begin elsewhere.
STEP = "examples per step"


def steps_of(max_steps: int | None, epochs: float, examples: int, batch: int) -> int:
    """
    Length of a run.

    Args:
        max_steps: what the user asks for; None for the recipe's epochs.

    Raises:
        ValueError: less than one step is asked for.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"--max-steps is {max_steps}; expected 1 or more.")
    return math.ceil(epochs * examples / batch) if max_steps is None else max_steps


def process_state() -> PartialState:
    """
    Which of the run's processes this is.

    Without a GPU, accelerate would take every process for the only one until `TrainingArguments` have been made: nobody
    would wait for the main process, and all would write the same files.
    """
    # They may wait for hours, while the main one computes features; torch gives up after half an hour.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))


def require_one_process() -> None:
    """
    For scripts that are not written for several processes, each of which would write the same files.

    Raises:
        ValueError: this is one of several.
    """
    if (count := process_state().num_processes) > 1:
        raise ValueError(f"This script runs in one process, and {count} were started; start it with python alone.")


def last_checkpoint(folder: str | Path) -> str | None:
    """
    The last checkpoint in a folder that was written whole, None if there is none.

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
    Remembers a run in `output`, or compares it with the one that made the checkpoint from which it would go on.

    Args:
        run: what makes the run what it is, by content, as JSON holds it; where files lie and what they are called says
            nothing, and the number of steps and what is in `MAY_CHANGE` may change.
        checkpoint: the last one under `output`; None starts afresh.

    Raises:
        ValueError: the checkpoint is of another run; the message names what differs.
    """
    run = json.loads(json.dumps(run))  # as it reads back
    path = output / RUN_FILE
    if checkpoint is not None and path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = {STEP: run.get(STEP)} | stored  # runs of before it was remembered
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
        write_atomically(path, json.dumps(run, indent=2) + "\n")


def recipe_values(recipe) -> dict[str, object]:
    """A recipe's values for `check_run`, those of its `training` one by one, so that a message can name them."""
    values = {f"recipe.{name}": value for name, value in dataclasses.asdict(recipe).items()}
    return values | {f"recipe.training.{name}": value for name, value in values.pop("recipe.training").items()}


def loaded_hash(model: torch.nn.Module, drawn: Iterable[str] = ()) -> str:
    """
    SHA-256 over the weights that a model has read.

    Args:
        drawn: names of tensors that were new instead, as `from_pretrained` gives them in `missing_keys`: machines draw
            other numbers from one seed.
    """
    drawn = set(drawn)
    return hash_tensors((name, tensor) for name, tensor in model.state_dict().items() if name not in drawn)


def vocabulary_hash(tokenizer) -> str:
    """SHA-256 over a tokenizer's entries and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 over a file."""
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
