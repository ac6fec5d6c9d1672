"""What keeps generation within SEED's grammar: words, or images of exactly `num_codes` codes between delimiters."""

import torch
from transformers import LogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

GENERATION_MODES = ("text", "image", "interleaved")
# `generate`'s settings that take no token away: a checkpoint may have others, and transformers' default is top_k 50.
FROM_ALL_TOKENS = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
# What models and their outputs call the cache: transformers renamed it in 5.24.
CACHE_NAME = next(name for name in ("cache", "past_key_values") if name in CausalLMOutputWithPast.__dataclass_fields__)


def sampling_options(temperature: float) -> dict:
    """
    `generate`'s arguments for a temperature: 0 takes the likeliest token each time, more samples from all of them.

    Raises:
        ValueError: a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"The temperature is {temperature}; expected 0 (the likeliest token) or more (sampling).")
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": float(temperature), **FROM_ALL_TOKENS}


class SeedImageTokensLogitsProcessor(LogitsProcessor):
    """
    Lets through only the tokens that the grammar allows next, row by row, read off the tokens so far.

    Inside an image: codes until there are `num_codes`, then `</img>`. Outside: words; `<img>` too in mode
    "interleaved", as long as a whole image still fits. In mode "image" the prompt ends with `<img>`. Other tokens get
    the dtype's minimum, not -inf, of which guidance would make NaN. Where earlier processors have banned all that the
    grammar allows, it is let through alike.

    Args:
        config: [`SeedOPTConfig`] or another with the same vocabulary fields.
        generation_mode: "text", "image" or "interleaved".
        max_length: tokens of prompt and answer together, after which generation is stopped.
    """

    def __init__(self, config, generation_mode: str, max_length: int):
        self.boi, self.eoi, self.first_code = config.boi_token_id, config.eoi_token_id, config.first_code_token_id
        self.num_codes = config.num_codes
        self.generation_mode = generation_mode
        self.max_length = max_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        Args:
            input_ids: `(batch, length)`.
            scores: `(batch, vocab_size)`.
        """
        lowest = torch.finfo(scores.dtype).min
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        if self.generation_mode == "text":
            allowed[:, : self.boi] = True
            return _let_through(scores, allowed, lowest)
        written = codes_written(input_ids, self.boi, self.eoi, self.num_codes)
        outside = written < 0
        if self.generation_mode == "interleaved":
            allowed[:, : self.boi] = outside[:, None]
            # <img>, the codes, </img>: what is opened must also be closed.
            allowed[:, self.boi] = outside & (input_ids.shape[1] + self.num_codes + 2 <= self.max_length)
        # Rows of mode "image" that are done only wait for the others; </img> keeps them valid.
        allowed[:, self.eoi] = (written == self.num_codes) | (outside & (self.generation_mode == "image"))
        allowed[:, self.first_code :] = ((written >= 0) & (written < self.num_codes))[:, None]
        return _let_through(scores, allowed, lowest)


def _let_through(scores: torch.FloatTensor, allowed: torch.BoolTensor, lowest: float) -> torch.FloatTensor:
    scores = scores.masked_fill(~allowed, lowest)
    banned = scores.amax(dim=1, keepdim=True) <= lowest
    return scores.masked_fill(banned & allowed, 0)


def codes_written(input_ids: torch.LongTensor, boi: int, eoi: int, num_codes: int) -> torch.LongTensor:
    """
    `(batch,)`: how many codes the image that is open at the end of each row has; -1 where none is open.

    Args:
        input_ids: `(batch, length)`.
        boi, eoi: the ids of `<img>` and `</img>`.
    """
    # An open image is at most <img> and num_codes codes long, so only the tail needs looking at.
    tail = input_ids[:, -(num_codes + 1) :]
    distance = torch.arange(tail.shape[1] - 1, -1, -1, device=tail.device)
    # Tokens since the last <img>; larger than anything in the tail where there is none.
    since_opened = torch.where(tail == boi, distance, tail.shape[1] + 1).min(dim=1).values
    since_closed = torch.where(tail == eoi, distance, tail.shape[1] + 1).min(dim=1).values
    return torch.where((since_opened <= tail.shape[1]) & (since_opened < since_closed), since_opened, -1)


class SeedTokenGuidanceLogitsProcessor(LogitsProcessor):
    """
    Classifier-free guidance on visual tokens: moves the scores away from those of the empty prompt.

    `log p = log p(empty) + scale * (log p(prompt) - log p(empty))` over the visual tokens. Unlike transformers' own
    processor it is batched over one shared empty prompt, computes visual rows only, and stays right when beams change
    places.

    Args:
        model: the language model.
        scale: 1 changes nothing; larger follows the prompt more closely.
        unconditional_ids: `(1, length)`, the drawing prompt with an empty caption, up to and with `<img>`.
        prompt_length: columns of `input_ids` that are the prompt, up to and with `<img>`.
    """

    def __init__(self, model, scale: float, unconditional_ids: torch.LongTensor, prompt_length: int):
        self.model = model
        self.scale = scale
        self.unconditional_ids = unconditional_ids
        self.prompt_length = prompt_length
        self.cache, self.cached = None, None  # the cache, and the drawn tokens that are in it

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        Args:
            input_ids: `(batch, length)`.
            scores: `(batch, vocab_size)`, in which words have the dtype's minimum.
        """
        first = self.model.config.boi_token_id
        unconditional = self._unconditional_logits(input_ids[:, self.prompt_length :])[:, first:]
        unconditional = unconditional.to(scores).log_softmax(dim=-1)
        conditional = scores[:, first:].log_softmax(dim=-1)
        guided = scores.clone()
        guided[:, first:] = unconditional + self.scale * (conditional - unconditional)
        return guided

    def _unconditional_logits(self, drawn: torch.LongTensor) -> torch.Tensor:
        goes_on = self.cached is not None and torch.equal(self.cached, drawn[:, :-1])
        if goes_on:
            inputs = drawn[:, -1:]
        else:  # the first step, or beams changed places: the cache belongs to other rows
            self.cache = None
            inputs = torch.cat([self.unconditional_ids.to(drawn).expand(len(drawn), -1), drawn], dim=1)
        outputs = self.model(
            inputs, **{CACHE_NAME: self.cache}, use_cache=True, generation_mode="image", logits_to_keep=1
        )
        self.cache, self.cached = outputs[CACHE_NAME], drawn
        return outputs.logits[:, -1]


__all__ = [
    "FROM_ALL_TOKENS",
    "GENERATION_MODES",
    "SeedImageTokensLogitsProcessor",
    "SeedTokenGuidanceLogitsProcessor",
    "codes_written",
    "sampling_options",
]
