"""The resumable training loop of all stages of `train_stable_diffusion.py`, and atomic saving."""

import copy
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seed.hardware import has_fast_bfloat16

from .data import Pairs
from .recipe import StageRecipe

logger = logging.getLogger("train_stable_diffusion")


def fit(
    name: str,
    model: nn.Module,
    loss_terms: Callable[[Tensor], dict[str, Tensor]],
    train: Pairs,
    recipe: StageRecipe,
    output: Path,
    seed: int,
    on_save: Callable[[int], None],
    start_from: dict[str, str] | None = None,
) -> None:
    """Train `model` on `loss_terms(rows)["loss"]`, `rows` being the indices of a batch, and leave its EMA in `model`.

    Every `save_every` steps `on_save(step)` is called with the EMA in place, and then the state is written to one file.
    A run that finds such a file continues from there, so that what a kill cut short is made again.

    Args:
        start_from: hashes of the parts that earlier stages made and this one trains on, by their names.

    Raises:
        ValueError: the file belongs to another run.
    """
    num_examples = len(train.images)
    batch_size = min(recipe.batch_size, num_examples)
    parameters = dict(model.named_parameters())
    average = {key: value.detach().clone() for key, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), recipe.learning_rate, (0.9, 0.99), fused=True,
                                  weight_decay=recipe.weight_decay)  # fmt: skip
    checkpoint = output / f"{name}.checkpoint.safetensors"
    # A run may be made longer; all other values identify it.
    run = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in ("steps", "save_every")}
    run |= {"data": train.hash, "seed": seed} | (start_from or {})
    start = load_checkpoint(checkpoint, run, parameters, average, optimizer) if checkpoint.exists() else 0

    def finish(step):
        with swapped(parameters, average):
            model.eval()
            on_save(step)
            model.train()
        save_checkpoint(checkpoint, step, run, parameters, average, optimizer)

    bfloat16 = has_fast_bfloat16()
    model.train()
    order, sums, since = (-1, None), {}, time.time()
    for step in range(start, recipe.steps):
        epoch, position = divmod(step, num_examples // batch_size)
        if order[0] != epoch:
            order = epoch, torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed + epoch))
        torch.manual_seed(seed + 1_000_003 * (step + 1))
        warmup = (step + 1) / max(1, recipe.warmup_steps)
        remaining = (recipe.steps - step) / max(1, recipe.decay_steps)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, warmup, remaining)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            terms = loss_terms(order[1][position * batch_size : (position + 1) * batch_size])
        if not torch.isfinite(terms["loss"]):
            raise FloatingPointError(f"{name}: loss {terms['loss']} at step {step + 1}; lower learning_rate.")
        optimizer.zero_grad()
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        # The average is short at first, so that the first snapshots are not the initialisation.
        decay = min(recipe.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        sums = {key: sums.get(key, 0.0) + value.item() for key, value in terms.items()}
        count = (step - start) % 50 + 1
        if count == 50 or step + 1 == recipe.steps:
            means = " ".join(f"{key} {value / count:.4f}" for key, value in sums.items())
            rate = count * batch_size / (time.time() - since)
            logger.info("%s step %d/%d epoch %.1f %s (%.0f/s)", name, step + 1, recipe.steps,
                        (step + 1) * batch_size / num_examples, means, rate)  # fmt: skip
            sums, since = {}, time.time()
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            finish(step + 1)
    for key, value in parameters.items():
        value.data.copy_(average[key])
    model.eval()


class swapped:
    """A context in which the parameters hold the averages, and the averages hold the parameters."""

    def __init__(self, parameters: dict[str, Tensor], average: dict[str, Tensor]):
        self.pairs = [(parameters[key], average[key]) for key in parameters]

    def __enter__(self):
        for parameter, average in self.pairs:
            parameter.data, average.data = average.data, parameter.data

    def __exit__(self, *_):
        self.__enter__()


def save_checkpoint(
    path: Path, step: int, run: dict, parameters: dict, average: dict, optimizer: torch.optim.Optimizer
) -> None:
    tensors = {}
    for key, parameter in parameters.items():
        tensors |= {f"parameter.{key}": parameter.detach(), f"average.{key}": average[key]}
        tensors |= {f"optimizer.{slot}.{key}": value for slot, value in optimizer.state[parameter].items()}
    temporary = path.with_suffix(".tmp")
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step), "run": json.dumps(run)}
    )
    temporary.replace(path)


def load_checkpoint(path: Path, run: dict, parameters: dict, average: dict, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of a run and return its step; raise ValueError where the file belongs to another run."""
    with safe_open(path, "pt") as file:
        step, stored = int(file.metadata()["step"]), json.loads(file.metadata()["run"])
    run = json.loads(json.dumps(run))  # as the file holds it
    differing = sorted(key for key in run.keys() | stored.keys() if run.get(key) != stored.get(key))
    if differing:
        raise ValueError(
            f"{path} is of another run: it differs in {', '.join(differing)}. Repeat that run's command to go on with "
            f"it; for another run choose another --output, or delete {path}."
        )
    tensors = load_file(path)
    slots = sorted({key.split(".")[1] for key in tensors if key.startswith("optimizer.")})
    for key, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter.{key}"])
        average[key].copy_(tensors[f"average.{key}"])
        optimizer.state[parameter] = {slot: tensors[f"optimizer.{slot}.{key}"] for slot in slots}
    return step


def save_atomically(save: Callable[[Path], None], folder: Path) -> None:
    """Call `save` on a temporary folder, and then put that folder in the place of `folder`."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary)
    for config in (temporary / "config.json", temporary / "text_encoder" / "config.json"):
        # transformers loads in the dtype that the config names, and diffusers in float32. Without this, the text
        # encoder alone would be bfloat16 in a pipeline that is loaded without a dtype, and the UNet would refuse its
        # features.
        if config.exists() and "dtype" in (values := json.loads(config.read_text())):
            config.write_text(json.dumps(values | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def half(model: nn.Module) -> nn.Module:
    """Return a bfloat16 copy, as it is shipped; later stages train on the saved copy, as users will load it."""
    return copy.deepcopy(model).bfloat16()
