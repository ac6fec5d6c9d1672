"""Load a SEED language model for evaluation, with its settings of generation and its image tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.provenance import weight_hash
from ..generation_seed import sampling_options, write_answers, write_captions, write_codes
from ..modeling_seed_language import load_language_model
from ..processing_seed import SeedProcessor
from .image_tokenizer import EvaluatedTokenizer


class EvaluatedLanguageModel:
    """
    A SEED language model, its processor and its image tokenizer, which is loaded when it is needed.

    Args:
        name: folder or Hub id of a SEED repository with a language model.
        device: the device to run on.
        num_beams, length_penalty, max_new_tokens: settings for captions and answers; None takes those of the
            repository. The score of a beam is its log probability over its length to the power of the length penalty.
        token_guidance_scale, temperature: settings for codes; None takes those of the repository. Temperature 0 takes
            the likeliest code each time, a higher one samples.
        top_p: samples codes from the likeliest ones that together have this probability; needs a temperature above 0.
        seed: seed of sampling.
        dtype: dtype of the language model; the image tokenizer is always in float32.

    Raises:
        ValueError: the repository holds another kind of model, or none, or a processor that was not made for it; the
            temperature is negative; or `top_p` is given at temperature 0, or is not in 0 .. 1.
    """

    def __init__(
        self,
        name: str | Path,
        device: str | torch.device = "cpu",
        num_beams: int | None = None,
        length_penalty: float | None = None,
        token_guidance_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        max_new_tokens: int | None = None,
    ):
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; expected a share above 0 and up to 1.")
        self.name, self.device, self.seed = str(name), device, seed
        self.model = load_language_model(name, dtype=dtype).to(device)
        self.processor = SeedProcessor.from_pretrained(name).to(device)
        self.processor.check_language_model(self.model)
        words = {"num_beams": num_beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens}
        # A checkpoint may store that it samples (Llama 2 does); an evaluation asks for the likeliest words.
        self.text_options = {"do_sample": False} | {name: value for name, value in words.items() if value is not None}
        if temperature is None:
            temperature = self.processor.token_temperature or 0.0
        if top_p is not None and not temperature:
            raise ValueError(
                f"top_p is {top_p} at temperature 0, which takes the likeliest code and leaves nothing to choose from; "
                "pass a temperature too, such as 1."
            )
        if token_guidance_scale is None:
            token_guidance_scale = self.processor.token_guidance_scale
        self.drawing_options = {"token_guidance_scale": token_guidance_scale} | sampling_options(temperature)
        if top_p is not None:
            self.drawing_options["top_p"] = top_p
        self._tokenizer: EvaluatedTokenizer | None = None

    @property
    def tokenizer(self) -> EvaluatedTokenizer:
        """The image tokenizer, checked to be the one that the language model was trained with."""
        if self._tokenizer is None:
            tokenizer = EvaluatedTokenizer(self.name, self.device)
            self.processor.set_image_tokenizer(tokenizer.model)
            self._tokenizer = tokenizer
        return self._tokenizer

    def describe(self) -> dict:
        """Describe the model for the report."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "weights_sha256": weight_hash(self.model),
            "image_tokenizer": self.model.config.image_tokenizer_hash,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def caption(self, codes: torch.LongTensor) -> list[str]:
        """Write captions with the paper's prompt; codes: `(pictures, num_codes)`."""
        return write_captions(self.model, self.processor, codes=codes, **self.text_options)

    def answer(self, codes: torch.LongTensor, questions: Sequence[str]) -> list[str]:
        """Write answers with the paper's prompt; codes: `(questions, num_codes)`, one row for each question."""
        return write_answers(self.model, self.processor, questions, codes=codes, **self.text_options)

    def draw_codes(self, prompts: Sequence[str], seed: int) -> torch.LongTensor:
        """
        Write the codes of drawings, `(prompts, num_codes)`, on the CPU.

        Args:
            seed: seed of sampling. If the settings sample, the codes of a prompt depend on the batch it is in.
        """
        generator = torch.Generator().manual_seed(seed)
        return write_codes(self.model, self.processor, prompts, generator=generator, **self.drawing_options)


def settings_of(model: EvaluatedLanguageModel) -> dict:
    """Return the generation settings of a checkpoint, for the report."""
    config = model.model.generation_config
    shown = ("num_beams", "do_sample", "temperature", "top_k", "top_p", "length_penalty", "repetition_penalty")
    return {name: getattr(config, name) for name in shown if getattr(config, name, None) is not None}


__all__ = ["EvaluatedLanguageModel", "settings_of"]
