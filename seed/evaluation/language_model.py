"""A language model made ready to be evaluated: it captions, answers and draws codes, with its own image tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from ..data.provenance import weight_hash
from ..generation_seed import sampling_options
from ..modeling_seed_language import SeedLanguageModelMixin
from ..processing_seed import SeedProcessor
from ..repository_seed import has_language_model
from .decoding import LENGTH_PENALTY, MAX_ANSWER_TOKENS, MAX_CAPTION_TOKENS, NUM_BEAMS
from .image_tokenizer import EvaluatedTokenizer


class EvaluatedLanguageModel:
    """
    A SEED language model, its processor, and (when first asked for) its image tokenizer.

    Args:
        name: a SEED repository with a language model: folder or Hub id.
        device: where it runs.
        dtype: of the language model; the image tokenizer is in float32 always.
        num_beams: for captions and answers; 1 is greedy search. `NUM_BEAMS` if None.
        length_penalty: beams are scored by log probability / length ** length_penalty. `LENGTH_PENALTY` if None.
        token_guidance_scale: for drawing; the processor's setting if None.
        temperature: for drawing: 0 takes the likeliest code each time, more samples; the processor's setting if None.
        top_p: for drawing, at a temperature above 0: samples from the likeliest codes only.
        seed: of sampling.
        max_new_tokens: of a caption or answer, what is longer is cut; None for `MAX_CAPTION_TOKENS` and
            `MAX_ANSWER_TOKENS`.

    Raises:
        ValueError: the repository holds another kind of model, or none, or a processor that was not made for it; a
            negative temperature; top_p at temperature 0, or not within 0 .. 1.
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
        self.max_caption_tokens = max_new_tokens or MAX_CAPTION_TOKENS
        self.max_answer_tokens = max_new_tokens or MAX_ANSWER_TOKENS
        if not has_language_model(name):
            raise ValueError(
                f"{name} has no language model (no config.json of one): pass the folder or Hub id of a SEED repository "
                "that was saved with one (examples/train_language.py makes them)."
            )
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        if not isinstance(model, SeedLanguageModelMixin):
            raise ValueError(f"{name} holds a {type(model).__name__}, which knows no images; expected a SEED model.")
        self.model = model.eval().to(device)
        self.processor = SeedProcessor.from_pretrained(name).to(device)
        self.processor.check_language_model(model)
        num_beams = num_beams or NUM_BEAMS
        length_penalty = LENGTH_PENALTY if length_penalty is None else length_penalty
        self.text_options = {"num_beams": num_beams, "do_sample": False}  # whatever the checkpoint's settings say
        if num_beams > 1:
            self.text_options["length_penalty"] = length_penalty
        if token_guidance_scale is None:
            token_guidance_scale = self.processor.token_guidance_scale
        self.drawing_options = {"token_guidance_scale": token_guidance_scale}
        if temperature is None:
            temperature = self.processor.token_temperature or 0
        self.drawing_options |= sampling_options(temperature)
        if top_p is not None:
            if not temperature:
                raise ValueError(
                    f"top_p is {top_p} at temperature 0, which takes the likeliest code and leaves nothing to choose "
                    "from; pass a temperature too, such as 1."
                )
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
        """What goes into the report."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "weights_sha256": weight_hash(self.model),
            "image_tokenizer": self.model.config.image_tokenizer_hash,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def caption(self, codes: torch.LongTensor) -> list[str]:
        """Captions by the paper's prompt; codes: `(pictures, num_codes)`."""
        return self._write(self.processor.caption_prompts(codes=codes), self.max_caption_tokens)

    def answer(self, codes: torch.LongTensor, questions: Sequence[str]) -> list[str]:
        """Answers by the paper's prompt; codes: `(questions, num_codes)`, of the picture that each is about."""
        return self._write(self.processor.question_prompts(questions, codes=codes), self.max_answer_tokens)

    def draw_codes(self, prompts: Sequence[str], seed: int) -> torch.LongTensor:
        """
        Codes of drawings, `(prompts, num_codes)`, on the CPU.

        Args:
            seed: of sampling, if the settings sample; with it, what a prompt gives depends on the batch it is in.
        """
        torch.manual_seed(seed)
        inputs = self.processor.drawing_prompts(prompts).to(self.device)
        options = dict(self.drawing_options)
        if options["token_guidance_scale"] not in (None, 1):
            options["unconditional_ids"] = self.processor.unconditional_prompt().to(self.device)
        ids = self.model.generate(**inputs, generation_mode="image", **options)
        start = inputs["input_ids"].shape[1]
        return self.processor.ids_to_codes(ids[:, start : start + self.model.config.num_codes]).cpu()

    def _write(self, inputs, max_new_tokens: int) -> list[str]:
        inputs = inputs.to(self.device)
        ids = self.model.generate(**inputs, generation_mode="text", max_new_tokens=max_new_tokens, **self.text_options)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.post_process_multimodal_output(new, generation_mode="text")]


def settings_of(model: EvaluatedLanguageModel) -> dict:
    """How it generates, for the report: what was asked for over the checkpoint's generation settings."""
    config = model.model.generation_config
    shown = ("num_beams", "do_sample", "temperature", "top_k", "top_p", "length_penalty", "repetition_penalty")
    return {name: getattr(config, name) for name in shown if getattr(config, name, None) is not None}


__all__ = ["EvaluatedLanguageModel", "settings_of"]
