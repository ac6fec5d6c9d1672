"""transformers' Trainer for SEED: examples in the run's own order, and every loss term in the log."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from ..hardware import has_fast_bfloat16, keep_freed_memory
from ..quantization_seed import codebook_usage
from .runs import last_checkpoint, process_state

_ONE_MODEL_PER_PROCESS = (
    "FSDP, DeepSpeed and one process on several GPUs (DataParallel) are not supported. To train on several GPUs use "
    "DDP, a process for each (torchrun --nproc_per_node N, or accelerate launch --multi_gpu). To train on one of them, "
    "show that one alone (CUDA_VISIBLE_DEVICES=0)."
)


def training_arguments(output: str | Path, training: dict[str, Any], **settings) -> TrainingArguments:
    """
    Return the arguments of `Trainer`, and prepare the process for training.

    Args:
        output: folder of the checkpoints.
        training: the recipe's `training`. `bf16: auto` computes in bfloat16 if the machine has instructions for it, and
            in float32 if not.
        settings: arguments that the script decides. It sets the number of steps afterwards, as this depends on the
            batch.
    """
    keep_freed_memory()
    # Trainer computes in bfloat16 on a CPU only if it is told to use the CPU. Its filter of losses that are not finite
    # would wait for the device at every step; `FiniteTrainer` has looked already.
    values = {"use_cpu": not torch.cuda.is_available(), "logging_nan_inf_filter": False} | training
    if values.get("bf16") == "auto":
        values["bf16"] = has_fast_bfloat16()
    return TrainingArguments(output_dir=str(output), max_steps=1, **values, **settings)


def refuse_data_parallel() -> None:
    """
    Refuse DataParallel as `require_one_model_per_process` does, but before the hours that a feature cache may take.
    """
    if process_state().num_processes == 1 and torch.cuda.device_count() > 1:
        raise ValueError(_ONE_MODEL_PER_PROCESS)


class TrainingDivergedError(RuntimeError):
    """A loss or weight is not finite. Nothing has been saved since the checkpoint that the message names."""


class FiniteTrainer(Trainer):
    """
    A `Trainer` that stops with [`TrainingDivergedError`] before a loss that is not finite reaches the weights, and
    before weights that are not finite reach a checkpoint.
    """

    def require_one_model_per_process(self) -> None:
        """
        Check that every process trains exactly one whole model. Negatives and code counts are gathered from processes,
        and the main process saves its own model.

        Raises:
            ValueError: the model is split, or copied within a process.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.n_gpu > 1:
            raise ValueError(_ONE_MODEL_PER_PROCESS)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            self._stop(f"The loss is {float(loss)}")
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # A checkpoint brings its own learning rate, which would hide one that was lowered in the recipe since.
        scheduler = self.lr_scheduler
        if checkpoint is not None and isinstance(scheduler, LambdaLR):
            base = self.args.learning_rate
            scheduler.base_lrs = [base] * len(scheduler.base_lrs)
            scheduler._last_lr = [base * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr):
                group["initial_lr"], group["lr"] = base, rate

    def _save_checkpoint(self, *args, **kwargs) -> None:
        self._check_weights()
        super()._save_checkpoint(*args, **kwargs)

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        self._check_weights()
        return result

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                self._stop(f"The weight {name} is not finite")

    def _stop(self, reason: str) -> None:
        last = last_checkpoint(self.args.output_dir)
        kept = "There is no checkpoint yet."
        if last:
            kept = f"The last good checkpoint is {last}; the same command goes on from there."
        raise TrainingDivergedError(
            f"{reason} at step {self.state.global_step + 1}, so training has stopped. {kept} First lower the recipe's "
            "learning_rate or max_grad_norm, lengthen warmup_steps or compute in float32 (bf16: false), or it will "
            "happen again."
        )


class RunTrainer(FiniteTrainer):
    """
    A `FiniteTrainer` for data sets that shuffle themselves. It reads them in order, so that a resumed run repeats and
    loses no example.
    """

    def _get_train_sampler(self, train_dataset=None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


class SeedTrainer(RunTrainer):
    """
    A `RunTrainer` that logs the named loss terms and, in stage II, how much of the codebook is in use.

    Args:
        text_features: function from a batch's `caption_ids`, `(batch, 77)`, to stage II's target, `(batch, 77,
            generation_dim)`.
    """

    def __init__(self, *args, text_features: Callable[[torch.LongTensor], torch.Tensor] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.text_features = text_features
        # The losses are means over a batch; Trainer divides them by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._terms: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._code_counts: torch.Tensor | None = None

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if self.text_features is not None:
            features = self.text_features(inputs["caption_ids"])
            inputs = {name: value for name, value in inputs.items() if name != "caption_ids"}
            inputs["text_features"] = features
        outputs = model(**inputs)
        for name, value in outputs.losses.items():
            self._terms[name].append(value.detach())
        if (counts := outputs.code_counts) is not None:
            self._code_counts = counts if self._code_counts is None else self._code_counts + counts
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self._terms and "loss" in logs:
            logs |= {name: round(float(torch.stack(values).float().mean()), 4) for name, values in self._terms.items()}
            self._terms.clear()
            if self._code_counts is not None:
                usage = codebook_usage(self.accelerator.reduce(self._code_counts))
                logs |= {f"codebook_{name}": round(value, 4) for name, value in usage.items()}
                self._code_counts = None
        super().log(logs, *args, **kwargs)
