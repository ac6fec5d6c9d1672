"""
Generation: the grammar of words and images, and one function each to write captions, answers and codes.

The grammar lets a model write words, and images of exactly `num_codes` codes between `<img>` and `</img>`.
"""

import contextlib
import copy
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

logger = logging.get_logger(__name__)

GENERATION_MODES = ("text", "image", "interleaved")
# How words are searched: these beams look for the likeliest caption or answer as a whole (our choice; the paper names
# no decoding method). Greedy search names fewer pictures, and so do beams scored by the mean over their tokens
# (transformers' default length penalty, 1.0), which favours long names. A new SEED language model stores these settings
# in its generation configuration.
WORD_SEARCH = {"num_beams": 5, "length_penalty": 0.0, "do_sample": False}
# Takes the likeliest token each time.
_GREEDY = {"num_beams": 1, "length_penalty": 1.0}
# With these settings of `generate` every token may be sampled. A checkpoint may store others, and transformers' default
# is top_k=50.
FROM_ALL_TOKENS = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
# What models and their outputs call the cache, which transformers 5.24 renamed.
CACHE_NAME = next(name for name in ("cache", "past_key_values") if name in CausalLMOutputWithPast.__dataclass_fields__)
# So many images are captioned or asked about at once. Each takes some forty tokens in the cache of keys and values, so
# this bounds the memory for any number of images.
IMAGES_PER_BATCH = 32


# Captions, answers, codes --------------------------------------------------------------------------------------------


def write_captions(model, processor, images=None, codes=None, **generate_kwargs) -> list[str]:
    """
    Write one caption per image, with the paper's prompt (section 4).

    The model's generation configuration says how words are searched. The processor holds the prompt and the length of
    the longest caption. So all commands, pipelines and evaluations write the same caption for the same image.

    Args:
        model: [`SeedOPTForCausalLM`] or another SEED language model.
        processor: its [`SeedProcessor`].
        images: one or more images (PIL, path, array, tensor, address); or
        codes: their codes, `(images, num_codes)`.
        generate_kwargs: arguments of `generate` (`num_beams`, `max_new_tokens`, `do_sample`, ...), which replace the
            stored settings.
    """
    return _write_words(model, processor, None, images, codes, processor.max_caption_tokens, generate_kwargs)


def write_answers(
    model, processor, questions: str | Sequence[str], images=None, codes=None, **generate_kwargs
) -> list[str]:
    """
    Write one short answer per question about an image, with the paper's prompt (section 4).

    Args:
        questions: one for each image. The other arguments are those of [`write_captions`].

    Raises:
        ValueError: there are not as many questions as images.
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    return _write_words(model, processor, questions, images, codes, processor.max_answer_tokens, generate_kwargs)


def _write_words(model, processor, questions, images, codes, max_new_tokens: int, generate_kwargs: dict) -> list[str]:
    codes = processor.read_codes(codes, images)
    if questions is not None and len(questions) != len(codes):
        raise ValueError(f"Got {len(questions)} questions for {len(codes)} images; expected one for each image.")
    written = []
    for start in range(0, len(codes), IMAGES_PER_BATCH):
        rows = slice(start, start + IMAGES_PER_BATCH)
        if questions is None:
            inputs = processor.caption_prompts(codes=codes[rows])
        else:
            inputs = processor.question_prompts(questions[rows], codes=codes[rows])
        options = {"max_new_tokens": max_new_tokens} | generate_kwargs
        ids = model.generate(**inputs.to(model.device), generation_mode="text", **options)
        answers = ids[:, inputs["input_ids"].shape[1] :]
        texts = processor.post_process_multimodal_output(answers, generation_mode="text")
        written += [text.strip() for text in texts]
    return written


@torch.no_grad()
def write_codes(
    model,
    processor,
    prompts: str | Sequence[str],
    num_images_per_prompt: int = 1,
    token_guidance_scale: float | None = None,
    token_temperature: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: str | torch.device | None = None,
    **generate_kwargs,
) -> torch.LongTensor:
    """
    Write the codes of drawings, `(prompts * num_images_per_prompt, num_codes)`, on the CPU.

    Args:
        model, processor: as in [`write_captions`].
        prompts: one or more captions; "" draws unconditionally.
        num_images_per_prompt: rows per prompt: different ones where the model samples, else the same one repeated.
        token_guidance_scale: the strength of the guidance against the empty prompt. 1 turns it off; None takes the
            processor's setting.
        token_temperature: the temperature at which codes are sampled, from all of them unless `generate_kwargs` limit
            the choice. 0 takes the likeliest code each time; None takes the processor's setting.
        generator: seeds the sampling. A list, one generator per row, samples each row by itself. torch's global
            generators are left as they were.
        device: where the prompts go; None takes the model's own device.
        generate_kwargs: arguments of the language model's `generate` (`top_k`, `top_p`, `num_beams`, ...).
            `temperature`, `do_sample` and `generation_config` overrule `token_temperature`. A `temperature` above 0
            samples.

    Raises:
        ValueError: there is no prompt; a prompt does not fit into the context; the temperature is negative; there are
            not as many generators as drawings; `num_return_sequences` asks for several rows per prompt.
    """
    if token_guidance_scale is None:
        token_guidance_scale = processor.token_guidance_scale
    options = _choosing_options(token_temperature, processor.token_temperature or 0.0, generate_kwargs)
    stored = getattr(options.get("generation_config"), "num_return_sequences", None)
    if (several := options.get("num_return_sequences") or stored or 1) != 1:
        raise ValueError(
            f"num_return_sequences is {several}, but every prompt gets one row here; pass num_images_per_prompt for "
            "several drawings of each."
        )
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    prompts = [text for text in prompts for _ in range(num_images_per_prompt)]
    samples = options.get("do_sample", getattr(options.get("generation_config"), "do_sample", None))
    if samples and isinstance(generator, list):
        if len(generator) != len(prompts):
            raise ValueError(f"Got {len(generator)} generators for {len(prompts)} drawings.")
        groups = [([text], one) for text, one in zip(prompts, generator)]
    else:
        groups = [(prompts, generator[0] if isinstance(generator, list) else generator)]
    device = model.device if device is None else torch.device(device)
    if token_guidance_scale not in (None, 1):
        options |= {
            "token_guidance_scale": token_guidance_scale,
            "unconditional_ids": processor.unconditional_prompt().to(device),
        }
    rows = []
    for texts, one in groups:
        inputs = processor.drawing_prompts(texts).to(device)
        with _seeded(one if samples else None, device):
            written = model.generate(**inputs, generation_mode="image", **options)
        rows.append(processor.image_codes(getattr(written, "sequences", written)))
    return torch.cat(rows)


def sampling_options(temperature: float) -> dict:
    """
    Return `generate`'s arguments for a temperature: 0 takes the likeliest token each time, more samples from all.

    Raises:
        ValueError: the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"The temperature is {temperature}; expected 0 (the likeliest token) or more (sampling).")
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": float(temperature), **FROM_ALL_TOKENS}


def _choosing_options(token_temperature: float | None, setting: float, generate_kwargs: dict) -> dict:
    """
    Complete `generate`'s arguments by those that say how a code is chosen, unless they say it themselves.

    Args:
        token_temperature: what the caller asks for; `temperature` and `do_sample` in `generate_kwargs` overrule it.
        setting: the temperature of the repository, for a caller who asks for none.
    """
    unset = [name for name in ("temperature", "do_sample") if generate_kwargs.get(name) is None]
    options = {name: value for name, value in generate_kwargs.items() if name not in unset}
    if options.get("generation_config") is not None and len(unset) == 2:
        return options
    temperature = options.pop("temperature", token_temperature)
    if temperature is None:
        temperature = setting
    if options.get("do_sample") is False:
        return options
    chosen = sampling_options(temperature) | options
    # A caller who passes do_sample without a temperature also samples from all codes, not from 50.
    return FROM_ALL_TOKENS | chosen if chosen["do_sample"] else chosen


@contextlib.contextmanager
def _seeded(generator: torch.Generator | None, device: torch.device):
    """
    Seed torch's global generators, from which transformers samples, from `generator`, and restore them afterwards.

    Args:
        device: where the language model runs, and samples. The generator may be on another device.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    # manual_seed seeds every device of this kind. Devices of another kind draw nothing here, and are left alone.
    kind = device.type if device.type != "cpu" else "cuda"
    devices = range(torch.get_device_module(kind).device_count()) if device.type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=kind):
        if devices:
            torch.manual_seed(int(seed))
        else:
            torch.random.default_generator.manual_seed(int(seed))
        yield


# The grammar ---------------------------------------------------------------------------------------------------------


class SeedGenerationMixin:
    """The `generate` of a SEED language model, which keeps to the grammar of words and images."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        generation_mode: str = "text",
        token_guidance_scale: float | None = None,
        unconditional_ids: torch.LongTensor | None = None,
        **kwargs,
    ):
        """
        Generate tokens as `GenerationMixin.generate` does, within the grammar of words and images.

        Args:
            input_ids: the prompts, `(batch, length)`, padded on the left (`attention_mask` says where). In mode "text"
                `inputs_embeds` may take their place, or nothing.
            generation_mode: "text" writes words only, searched as the generation configuration says. "image" writes one
                image, exactly `num_codes` codes and `</img>`; it adds `<img>` to a prompt that lacks it, and finishes
                an image whose first codes end the prompt. "interleaved" lets the model choose, and makes every image
                that it opens whole.
            token_guidance_scale: the strength of classifier-free guidance in mode "image"; None or 1 turns it off.
                Prompts that end with codes must then all end with equally many.
            unconditional_ids: the drawing prompt with an empty caption, `(1, length)`
                ([`SeedProcessor.unconditional_prompt`]), which guidance needs.
            kwargs: everything else that `generate` takes (sampling, beams, `num_return_sequences`, static cache,
                streamers, ...). The modes "image" and "interleaved" use beams only if `num_beams` asks for them,
                because the model's generation configuration has them for words.

        Raises:
            ValueError: the mode is unknown; a prompt leaves no room in the context, or has ids of a larger vocabulary;
                a limit leaves no token or would cut an image short, in mode "interleaved" also the limit of a
                generation configuration; guidance is asked for without `unconditional_ids` or outside mode "image".
        """
        if generation_mode not in GENERATION_MODES:
            raise ValueError(f"generation_mode is {generation_mode!r}; expected one of {', '.join(GENERATION_MODES)}.")
        input_ids = kwargs.pop("inputs", None) if input_ids is None else input_ids
        if input_ids is None and generation_mode != "text":
            raise ValueError(f"generation_mode={generation_mode!r} needs input_ids, which SeedProcessor makes.")
        if input_ids is not None and input_ids.numel():
            lowest, highest = (int(limit) for limit in input_ids.aminmax())
            if lowest < 0 or highest >= self.config.vocab_size:
                raise ValueError(
                    f"Token id {lowest if lowest < 0 else highest} is out of range; this model has "
                    f"{self.config.vocab_size} words and visual tokens. Was the prompt made by another model's "
                    "processor?"
                )
        if kwargs.get("assistant_model") is not None and generation_mode != "text":
            raise ValueError(
                f"assistant_model does not work in generation_mode={generation_mode!r}, because its proposals do not "
                "keep to the grammar of images. Leave it out."
            )
        given_beams = getattr(generation_config, "num_beams", None)
        if generation_mode != "text" and given_beams in (None, self.generation_config.num_beams):
            kwargs = _GREEDY | kwargs  # the stored beams are for words
        elif kwargs.get("num_beams") == 1:
            kwargs = _GREEDY | kwargs
        if generation_mode == "image":
            input_ids, kwargs = self._open_image(input_ids, kwargs)
        prompt = next((given for given in (input_ids, kwargs.get("inputs_embeds")) if given is not None), None)
        prompt_length = 1 if prompt is None else prompt.shape[1]  # without a prompt, transformers starts from SOS
        settings = [config for config in (generation_config, self.generation_config) if config is not None]
        written = None if generation_mode == "text" else self._codes_written(input_ids)
        new_tokens = self._room_for_answer(prompt_length, generation_mode, written, settings, kwargs)
        kwargs.update(max_new_tokens=new_tokens, max_length=None)
        if generation_mode == "image":
            kwargs.update(eos_token_id=self.config.eoi_token_id, min_new_tokens=None, min_length=0)
            # transformers would pad with </img>, and a second </img> is an error.
            if all(config.pad_token_id is None for config in settings):
                kwargs.setdefault("pad_token_id", self._word_to_pad_with())

        processors = LogitsProcessorList()
        if token_guidance_scale not in (None, 1):
            if generation_mode != "image" or unconditional_ids is None:
                raise ValueError(
                    "token_guidance_scale works in generation_mode='image' and needs unconditional_ids, which "
                    "SeedProcessor.unconditional_prompt() gives."
                )
            begun = written.unique().tolist()
            if len(begun) > 1:
                raise ValueError(
                    f"The images that these prompts have begun have {begun} codes; with token_guidance_scale, all rows "
                    "of a batch must have equally many."
                )
            processors.append(
                SeedTokenGuidanceLogitsProcessor(
                    self, token_guidance_scale, unconditional_ids, prompt_length - begun[0]
                )
            )
        processors.extend(logits_processor or [])
        # Last, so that no other processor lets a token through that the grammar forbids.
        processors.append(SeedImageTokensLogitsProcessor(self.config, generation_mode, prompt_length + new_tokens))
        if generation_config is not None:  # transformers wants all settings in one place
            generation_config = copy.deepcopy(generation_config)
            kwargs = generation_config.update(**kwargs)
        return super().generate(
            input_ids,
            generation_config=generation_config,
            logits_processor=processors,
            generation_mode=generation_mode,
            **kwargs,
        )

    def _word_to_pad_with(self) -> int:
        ends = self.config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return next((token for token in (*ends, self.config.bos_token_id) if token is not None), 0)

    def _open_image(self, input_ids: torch.LongTensor, kwargs: dict) -> tuple[torch.LongTensor, dict]:
        """Add `<img>` to the prompts, unless they end with it or with the first codes of an image."""
        opened = self._codes_written(input_ids) >= 0
        if opened.all():
            return input_ids, kwargs
        if opened.any():
            raise ValueError("Some prompts of this batch end with <img> and some do not; let all or none end with it.")
        boi = input_ids.new_full((len(input_ids), 1), self.config.boi_token_id)
        if (mask := kwargs.get("attention_mask")) is not None:
            kwargs = kwargs | {"attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)}
        return torch.cat([input_ids, boi], dim=1), kwargs

    def _codes_written(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        config = self.config
        return codes_written(input_ids, config.boi_token_id, config.eoi_token_id, config.num_codes)

    def _room_for_answer(
        self,
        prompt_length: int,
        mode: str,
        written: torch.LongTensor | None,
        settings: list[GenerationConfig],
        kwargs: dict,
    ) -> int:
        """
        Return how many tokens to write.

        Args:
            written: how many codes the open image at the end of each prompt has, `(batch,)`, -1 where none is open;
                None in mode "text".
            settings: generation configurations. The first that has a limit gives it if `kwargs` have none, as far as it
                fits.

        Raises:
            ValueError: the answer does not fit into the context or the caller's limit.
        """
        room = self.config.max_position_embeddings - prompt_length
        asked = kwargs.pop("max_new_tokens", None)
        if (max_length := kwargs.pop("max_length", None)) is not None and asked is None:
            asked = max_length - prompt_length
        if asked is None and mode != "image":  # a configuration's limit is one for texts
            for config in settings:
                if config.max_new_tokens or config.max_length:
                    limit = config.max_new_tokens or config.max_length - prompt_length
                    asked = min(limit, room)
                    break
        opened = written is not None and bool((written >= 0).any())
        # An image that a prompt has opened is finished, also in mode "interleaved", by the codes it lacks and </img>.
        least = self.config.num_codes - int(written[written >= 0].min()) + 1 if opened else 1
        if room < least:
            raise ValueError(
                f"The prompt has {prompt_length} tokens; with {least} more for the answer it exceeds the context of "
                f"{self.config.max_position_embeddings}. Shorten the prompt, or give it fewer images."
            )
        if opened and asked is not None and asked < least:
            raise ValueError(
                f"max_new_tokens (or max_length) leaves {asked} tokens, which would cut the image short: it lacks "
                f"{least - 1} codes and </img>. Leave the limit out."
            )
        if mode == "image":
            return least
        if asked is None:  # transformers' default of 20 new tokens would not hold an image
            return room if mode == "interleaved" else min(20, room)
        if asked < 1:
            raise ValueError(
                f"max_new_tokens (or max_length) leaves {asked} tokens after a prompt of {prompt_length}; ask for 1 to "
                f"{room}."
            )
        if asked > room:  # transformers' pipelines ask for 256 tokens by themselves
            logger.warning(
                "%d new tokens after a prompt of %d do not fit into the context of %d; at most %d are written.",
                asked, prompt_length, self.config.max_position_embeddings, room,
            )  # fmt: skip
        return min(asked, room)


class SeedImageTokensLogitsProcessor(LogitsProcessor):
    """
    Logits processor that lets through only the tokens that the grammar allows next, given each row's tokens so far.

    Inside an image these are codes until there are `num_codes`, then `</img>`. Outside they are words, and in mode
    "interleaved" also `<img>`, as long as a whole image still fits. In mode "image" the prompt ends with `<img>`. Other
    tokens get the dtype's minimum, not -inf, which guidance would turn into NaN. If earlier processors have banned all
    tokens that the grammar allows, these become equally likely.

    Args:
        config: [`SeedOPTConfig`] or another configuration with the same vocabulary fields.
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
            # An image takes num_codes + 2 tokens, and one that is opened must also be closed.
            allowed[:, self.boi] = outside & (input_ids.shape[1] + self.num_codes + 2 <= self.max_length)
        # In mode "image", rows that are done wait for the others; </img> keeps them valid.
        allowed[:, self.eoi] = (written == self.num_codes) | (outside & (self.generation_mode == "image"))
        allowed[:, self.first_code :] = ((written >= 0) & (written < self.num_codes))[:, None]
        return _let_through(scores, allowed, lowest)


def _let_through(scores: torch.FloatTensor, allowed: torch.BoolTensor, lowest: float) -> torch.FloatTensor:
    scores = scores.masked_fill(~allowed, lowest)
    banned = scores.amax(dim=1, keepdim=True) <= lowest
    return scores.masked_fill(banned & allowed, 0)


def codes_written(input_ids: torch.LongTensor, boi: int, eoi: int, num_codes: int) -> torch.LongTensor:
    """
    Count the codes of the image that is open at the end of each row, `(batch,)`; -1 where none is open.

    Args:
        input_ids: `(batch, length)`.
        boi, eoi: the ids of `<img>` and `</img>`.
    """
    # An open image is at most <img> and num_codes codes long, so only the tail needs looking at.
    tail = input_ids[:, -(num_codes + 1) :]
    distance = torch.arange(tail.shape[1] - 1, -1, -1, device=tail.device)
    # The number of tokens since the last <img>, or more than the tail has if there is none.
    since_opened = torch.where(tail == boi, distance, tail.shape[1] + 1).min(dim=1).values
    since_closed = torch.where(tail == eoi, distance, tail.shape[1] + 1).min(dim=1).values
    return torch.where((since_opened <= tail.shape[1]) & (since_opened < since_closed), since_opened, -1)


class SeedTokenGuidanceLogitsProcessor(LogitsProcessor):
    """
    Logits processor for classifier-free guidance on visual tokens, away from the scores of the empty prompt.

    `log p = log p(empty) + scale * (log p(prompt) - log p(empty))` over the visual tokens. Unlike transformers' own
    processor it is batched over one shared empty prompt, computes visual rows only, and stays right when beams change
    places.

    Args:
        model: the language model.
        scale: 1 changes nothing; larger values follow the prompt more closely.
        unconditional_ids: the drawing prompt with an empty caption, `(1, length)`, up to and with `<img>`.
        prompt_length: the number of columns of `input_ids` that are the prompt, up to and with `<img>`.
    """

    def __init__(self, model, scale: float, unconditional_ids: torch.LongTensor, prompt_length: int):
        self.model = model
        self.scale = scale
        self.unconditional_ids = unconditional_ids
        self.prompt_length = prompt_length
        self.cache, self.cached = None, None  # `cached` are the drawn tokens that are in the cache

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
        else:  # this is the first step, or beams changed places, so that the cache belongs to other rows
            self.cache = None
            inputs = torch.cat([self.unconditional_ids.to(drawn).expand(len(drawn), -1), drawn], dim=1)
        outputs = self.model(
            inputs, **{CACHE_NAME: self.cache}, use_cache=True, generation_mode="image", logits_to_keep=1
        )
        self.cache, self.cached = outputs[CACHE_NAME], drawn
        return outputs.logits[:, -1]


__all__ = [
    "CACHE_NAME",
    "FROM_ALL_TOKENS",
    "GENERATION_MODES",
    "IMAGES_PER_BATCH",
    "WORD_SEARCH",
    "SeedGenerationMixin",
    "SeedImageTokensLogitsProcessor",
    "SeedTokenGuidanceLogitsProcessor",
    "codes_written",
    "sampling_options",
    "write_answers",
    "write_captions",
    "write_codes",
]
