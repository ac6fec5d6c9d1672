"""transformers' Trainer, told about SEED: examples in the run's own order, every loss term in the log."""

from collections import defaultdict

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer

from ..quantization_seed import codebook_usage


class SeedTrainer(Trainer):
    """
    A `Trainer` whose log holds the named loss terms and, in stage II, how much of the codebook is in use.

    The data keeps its order: [`RunDataset`] shuffles, so that a resumed run repeats and loses nothing.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # The losses are means over a batch; Trainer divides them by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._terms: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._code_counts: torch.Tensor | None = None

    def _get_train_sampler(self, train_dataset=None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        for name, value in outputs.losses.items():
            self._terms[name].append(value.detach())
        if outputs.codes is not None:
            size = self.accelerator.unwrap_model(model).config.codebook_size
            counts = torch.bincount(outputs.codes.flatten(), minlength=size)
            self._code_counts = counts if self._code_counts is None else self._code_counts + counts
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self._terms and "loss" in logs:
            logs |= {name: round(float(torch.stack(values).float().mean()), 4) for name, values in self._terms.items()}
            self._terms.clear()
            if self._code_counts is not None:
                usage = codebook_usage(self._code_counts)
                logs |= {f"codebook_{name}": round(value, 4) for name, value in usage.items()}
                self._code_counts = None
        super().log(logs, *args, **kwargs)
