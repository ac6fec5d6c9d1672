"""SEED's processor, which turns words, images and codes into the token ids of a language model, and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs, Unpack

from .chat_templates_seed import INSTRUCTION_CHAT_TEMPLATE, question_chat_template
from .files_seed import copy_folder, read_json, write_json
from .image_processing_seed import pixel_batches
from .modeling_seed import SeedModel
from .repository_seed import DECODER_FOLDER, DECODER_PARTS, IMAGE_TOKENIZER_FOLDER, SeedRepository, push_folder
from .sequences_seed import SeedSequencesMixin, given_codes
from .vocabulary_seed import IMAGE_PLACEHOLDER, check_placeholders, check_visual_tokens, flatten_codes, id_rows

# The names that the processor's pointers have in `processor_config.json`, which [`SeedPipeline`] reads too.
_POINTERS = {"image_repository": IMAGE_TOKENIZER_FOLDER, "decoder_repository": DECODER_FOLDER}
_TOKENIZER_ARGUMENTS = ("padding", "padding_side", "truncation", "max_length", "return_tensors")


class SeedProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {
        "text_kwargs": {"padding": True, "padding_side": "left", "add_special_tokens": True, "return_tensors": "pt"}
    }


class SeedProcessor(ProcessorMixin, SeedSequencesMixin):
    """
    Processor that turns words and any number of images, interleaved, into token ids, and token ids back into both.

    An image becomes `<img>`, its codes and `</img>` among the words. Only this class maps codes to ids and back. The
    image tokenizer is loaded when images are first given, from the repository that the processor was loaded from; for
    `codes` it is not needed.

    Args:
        image_processor: the [`SeedImageProcessor`].
        tokenizer: the text model's tokenizer, extended by `extend_tokenizer`. It is made to pad on the left.
        image_repository, decoder_repository: where the image tokenizer and the Stable Diffusion decoder lie: a folder
            relative to the processor's, or a Hub id. `processor_config.json` calls them `image_tokenizer` and
            `decoder`; [`SeedPipeline`] reads them there. None keeps what a saved file says, or else the default.
        num_codes, codebook_size: how many codes an image has, and from how many each is chosen.
        image_tokenizer_hash: the [`SeedModel.codes_hash`] of the image tokenizer that the language model was trained
            with. Another image tokenizer is refused. None accepts every one.
        caption_prompt, question_prompt, drawing_prompt: the paper's prompts (section 4). A trained model knows only the
            prompts it was trained with.
        max_caption_tokens, max_answer_tokens: the longest caption and answer. Longer ones are cut (our choice).
        guidance_scale, num_inference_steps: how diffusion draws. None keeps what a saved file says, or else the
            pipeline's default.
        token_guidance_scale, token_temperature: how the language model writes codes. None keeps what a saved file says.
        chat_template: a Jinja template, or several by name. None gives two: "default", which `question_chat_template`
            makes, and "instruction", which is INSTRUCTION_CHAT_TEMPLATE.

    Raises:
        ValueError: the tokenizer's visual tokens are missing or not contiguous; `question_prompt` has no `{}`.

    Example:

        ```python
        import torch

        import seed
        from seed.data import shipped_pictures

        processor = seed.SeedProcessor.from_pretrained(seed.default_model())
        codes = processor.tokenize_images(shipped_pictures()[:1])  # (1, 32), int64
        inputs = processor(text="Look: <image>", codes=codes)  # or images=...; input_ids, attention_mask
        words, image = processor.post_process_multimodal_output(inputs["input_ids"])[0]
        assert words == "Look:" and torch.equal(image, codes[0])
        ```
    """

    image_token = IMAGE_PLACEHOLDER
    unused_input_names = ["pixel_values"]  # because images become codes among the ids

    def __init__(
        self,
        image_processor,
        tokenizer: PreTrainedTokenizerBase,
        image_repository: str | None = None,
        decoder_repository: str | None = None,
        num_codes: int = 32,
        codebook_size: int = 8192,
        image_tokenizer_hash: str | None = None,
        caption_prompt: str = "A photo of",
        question_prompt: str = "Question: {} Short answer",
        drawing_prompt: str = "Generate an image",
        max_caption_tokens: int = 32,
        max_answer_tokens: int = 16,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        token_guidance_scale: float | None = None,
        token_temperature: float | None = None,
        chat_template: str | dict[str, str] | None = None,
    ):
        if "{}" not in question_prompt:
            raise ValueError(f"question_prompt is {question_prompt!r}; expected a text with {{}} for the question.")
        if chat_template is None:
            default = question_chat_template(question_prompt, caption_prompt)
            chat_template = {"default": default, "instruction": INSTRUCTION_CHAT_TEMPLATE}
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.boi_token_id = check_visual_tokens(tokenizer, codebook_size)
        tokenizer.padding_side = "left"  # for generation: transformers' own pipelines pad on the tokenizer's side
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.eoi_token_id = self.boi_token_id + 1
        self.first_code_token_id = self.boi_token_id + 2
        self.image_repository = image_repository
        self.decoder_repository = decoder_repository
        self.num_codes = num_codes
        self.codebook_size = codebook_size
        self.image_tokenizer_hash = image_tokenizer_hash
        self.caption_prompt = caption_prompt
        self.question_prompt = question_prompt
        self.drawing_prompt = drawing_prompt
        self.max_caption_tokens = max_caption_tokens
        self.max_answer_tokens = max_answer_tokens
        self.guidance_scale = guidance_scale
        self.num_inference_steps = num_inference_steps
        self.token_guidance_scale = token_guidance_scale
        self.token_temperature = token_temperature
        # The repository that the processor was loaded from, where the image tokenizer and the decoder are looked for.
        self.repository: SeedRepository | None = None
        self._device = torch.device("cpu")
        self._image_tokenizer: SeedModel | None = None
        self._decoder = None

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def get_attributes(cls) -> list[str]:
        """
        Return the names of the parts that transformers saves and loads.

        By itself transformers would also count every argument that is named after a tokenizer.
        """
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        Load a processor as transformers does, and remember its repository, where the image tokenizer is looked for.

        Raises:
            ValueError: `subfolder` names a folder of a Hub repository, where the image tokenizer would not be found.
        """
        if kwargs.get("subfolder") and Path(pretrained_model_name_or_path).is_dir():
            pretrained_model_name_or_path = Path(pretrained_model_name_or_path) / kwargs.pop("subfolder")
        elif kwargs.get("subfolder"):
            raise ValueError(
                f"subfolder is {kwargs['subfolder']!r}, but the image tokenizer and the decoder are looked for at the "
                "top of a processor's repository. Download the repository and pass its folder."
            )
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        names = ("revision", "token", "cache_dir", "local_files_only")
        options = {name: kwargs[name] for name in names if kwargs.get(name)}
        processor.repository = SeedRepository(pretrained_model_name_or_path, **options)
        return loaded

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict, **kwargs):
        processor_dict = dict(processor_dict)
        for argument, key in _POINTERS.items():
            if key in processor_dict:
                processor_dict[argument] = processor_dict.pop(key)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, whole: bool = False, **kwargs
    ) -> None:
        """
        Save the processor as transformers does.

        In another folder than the one it was loaded from, `processor_config.json` points to where the image tokenizer
        and the decoder lie, so that what is saved reads and draws images at once.

        Args:
            push_to_hub: upload the processor afterwards. `kwargs` are then the arguments of the method `push_to_hub`,
                where `repo_id` is the folder's name if it is not given.
            whole: copy the image tokenizer and the decoder into `save_directory` if they lie in other local folders, so
                that it can be moved or uploaded.
        """
        if push_to_hub:
            self.save_pretrained(save_directory, whole=whole)
            self.push_to_hub(kwargs.pop("repo_id", None) or Path(save_directory).name, **kwargs)
            return
        Path(save_directory).mkdir(parents=True, exist_ok=True)  # relative pointers start there
        loaded = {argument: getattr(self, argument) for argument in _POINTERS}
        try:
            for argument, part in _POINTERS.items():
                setattr(self, argument, self._pointer_from(Path(save_directory), part, loaded[argument], whole))
            super().save_pretrained(save_directory, **kwargs)
        finally:
            for argument, pointer in loaded.items():
                setattr(self, argument, pointer)

    def _pointer_from(self, root: Path, part: str, pointer: str | None, whole: bool) -> str | None:
        """Return the pointer to a part that the file in the folder `root` shall hold."""
        if (root / part).is_dir():
            return part
        found = pointer
        if self.repository is not None and root.resolve() != Path(self.repository.name).resolve():
            if pointer == self.repository.settings().get(part):  # else it was set since loading, and stays as it is
                found = self.repository.pointer_from(root, part)
        if found is None or not whole or not (root / found).is_dir():
            return pointer if found is None else found
        copy_folder(root / found, root / part)
        return part

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload SeedProcessor", **options) -> str:
        """
        Upload the processor, together with the image tokenizer and the decoder if they lie in local folders.

        `model.push_to_hub` into the same repository makes it complete.

        Args:
            options: `commit_description`, `private`, `token`, `revision` and `create_pr`, as in transformers.

        Returns:
            The address of the commit.
        """
        return push_folder(
            lambda folder: self.save_pretrained(folder, whole=True), repo_id, commit_message=commit_message, **options
        )

    def to_dict(self) -> dict:
        models = self._image_tokenizer, self._decoder
        self._image_tokenizer = self._decoder = None  # because transformers copies all attributes deeply
        try:
            values = super().to_dict()
        finally:
            self._image_tokenizer, self._decoder = models
        for argument, key in _POINTERS.items():
            values[key] = values.pop(argument, None)
        return {name: value for name, value in values.items() if value is not None}

    def to_json_file(self, json_file_path) -> None:
        """Write `processor_config.json` whole, and keep in it what only [`SeedPipeline`] has set."""
        kept = read_json(Path(json_file_path))
        kept.pop("image_tokenizer_hash", None)  # a hash that is None now is not written, and the old one must go
        write_json(Path(json_file_path), kept | self.to_dict())

    # The image tokenizer ---------------------------------------------------------------------------------------------

    def set_image_tokenizer(self, model: SeedModel) -> None:
        """
        Give the processor a loaded image tokenizer to share. It stays on its device until `to` moves it.

        Raises:
            ValueError: its codes are not those that the processor was made for.
        """
        found = (model.config.num_codes, model.config.codebook_size)
        if found != (self.num_codes, self.codebook_size):
            raise ValueError(
                f"The image tokenizer makes {found[0]} codes out of {found[1]}, the processor expects {self.num_codes} "
                f"out of {self.codebook_size}: they were not made for each other."
            )
        if self.image_tokenizer_hash is not None and (own := model.codes_hash()) != self.image_tokenizer_hash:
            raise ValueError(
                f"The image tokenizer's weights have the hash {own[:12]}..., but this processor's language model was "
                f"trained with {self.image_tokenizer_hash[:12]}...: the same codes mean other things to it. Use the "
                "image tokenizer of its repository (in float32: rounded weights have another hash), or train the "
                "language model on the codes of this one."
            )
        self._image_tokenizer = model.eval()

    def check_language_model(self, model) -> None:
        """
        Check that a language model reads and writes the ids that this processor makes.

        Args:
            model: [`SeedOPTForCausalLM`] or another SEED language model, or its configuration.

        Raises:
            ValueError: it has another text vocabulary or codebook, or was trained with another image tokenizer.
        """
        config = getattr(model, "config", model)
        for name in ("boi_token_id", "eoi_token_id", "first_code_token_id", "num_codes", "codebook_size"):
            theirs, ours = getattr(config, name, None), getattr(self, name)
            if theirs != ours:
                raise ValueError(
                    f"The language model's {name} is {theirs}, the processor's {ours}: they were not made for each "
                    "other. Load both from one repository."
                )
        theirs, ours = config.image_tokenizer_hash, self.image_tokenizer_hash
        if None not in (theirs, ours) and theirs != ours:
            raise ValueError(
                f"The language model was trained with the image tokenizer {theirs[:12]}..., the processor is made for "
                f"{ours[:12]}...: the same codes mean other things to them. Load both from one repository."
            )

    def to(self, device: str | torch.device) -> "SeedProcessor":
        """
        Tokenise images, and draw, on a device from now on. What is not loaded yet will be loaded there.

        transformers' pipelines do not tell their processor where the model runs, so call
        `pipe.processor.to(pipe.device)` once. Ids and codes are returned on the CPU all the same.
        """
        self._device = torch.device(device)
        for part in (self._image_tokenizer, self._decoder):
            if part is not None:
                part.to(self._device)
        return self

    def load_image_tokenizer(self) -> SeedModel:
        """
        Return the image tokenizer.

        It is loaded when first asked for, in float32, on the device that `to` has named, else on the CPU.

        Raises:
            ValueError: the processor does not know where it lies, or it has other codes (see `set_image_tokenizer`).
            FileNotFoundError, OSError: it is not there.
        """
        if self._image_tokenizer is None:
            pointer = self.image_repository or IMAGE_TOKENIZER_FOLDER
            if self.repository is not None:
                folder = self.repository.follow(pointer, [""])
            elif pointer != IMAGE_TOKENIZER_FOLDER:
                folder = SeedRepository(pointer).fetch(["*.json", "*.safetensors"])
            else:
                raise ValueError(
                    "This processor was not loaded from a repository, so it does not know its image tokenizer: call "
                    "set_image_tokenizer(SeedModel.from_pretrained(...)), or pass codes instead of images."
                )
            self.set_image_tokenizer(SeedModel.from_pretrained(folder, use_text_branch=False, dtype=torch.float32))
            self._image_tokenizer.to(self._device)
        return self._image_tokenizer

    @torch.no_grad()
    def tokenize_images(self, images, **images_kwargs) -> torch.LongTensor:
        """
        Return the codes of images, `(images, num_codes)`.

        Args:
            images: an image (PIL, array, tensor, path or address), or lists of them. Arrays and tensors hold 0 .. 255,
                or floats of 0 .. 1, as diffusers returns them; with `do_rescale=False`, what the model is given.
            images_kwargs: arguments of the image processor.
        """
        codes = [torch.empty(0, self.num_codes, dtype=torch.long)]
        for pixel_values in pixel_batches(self.image_processor, images, **images_kwargs):
            model = self.load_image_tokenizer()
            codes.append(model.get_image_tokens(pixel_values.to(model.device)).cpu())
        return torch.cat(codes)

    def read_codes(self, codes=None, images=None, **images_kwargs) -> torch.LongTensor | list:
        """
        Return the codes of all images in order, one row per image, from codes or from images.

        Raises:
            ValueError: both are given.
        """
        if codes is not None and images is not None:
            raise ValueError("Pass either images or codes, not both.")
        if codes is not None:
            return flatten_codes(codes)
        return [] if images is None else self.tokenize_images(images, **images_kwargs)

    # Words and images in ---------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images=None,
        codes=None,
        **kwargs: Unpack[SeedProcessorKwargs],
    ) -> BatchFeature:
        """
        Make token ids of words and images: each `<image>` in a text becomes `<img> codes </img>` of the next image.

        Args:
            text: one text or a list of them; None for one `<image>` per image.
            images: one image, a list for all texts in order, or a list per text; PIL, arrays, tensors, paths,
                addresses.
            codes: the images' codes instead of `images`: `(images, num_codes)`, or lists as for `images`.
            kwargs: arguments for texts and for the image processor, flat or in `text_kwargs` and `images_kwargs`. For
                texts these are `return_tensors` ("pt", "np", or None for lists); `padding` (True pads to the longest
                text, "max_length" to `max_length`, False not at all); `padding_side` ("left", for generation, or
                "right"); `max_length` (for example the model's context; longer sequences are an error and are not
                truncated, because half an image is none); `add_special_tokens` (puts SOS before the first word, after
                the images that come before it).

        Returns:
            `input_ids` and `attention_mask`, `(batch, length)`.

        Raises:
            ValueError: there is neither text nor image; placeholders and images disagree; codes have another shape or
                range; visual tokens in the text form no whole image; a text is too long; `truncation` is asked for; an
                argument is given twice.
            TypeError: an argument is unknown; a text or code has another type.
        """
        for_images = self.image_processor.valid_kwargs.__annotations__.keys() - TextKwargs.__annotations__.keys()
        known = {"text_kwargs", "images_kwargs", "common_kwargs", *TextKwargs.__annotations__, *for_images}
        # transformers' own callers pass audio=None and the like.
        kwargs = {name: value for name, value in kwargs.items() if name in known or value not in (None, False)}
        if unknown := sorted(kwargs.keys() - known):
            raise TypeError(f"Unknown argument {unknown[0]!r}; see SeedProcessor.__call__.")
        merged = self._merge_kwargs(SeedProcessorKwargs, **kwargs)
        images_kwargs = {name: value for name, value in merged["images_kwargs"].items() if name in for_images}
        text_kwargs = merged["text_kwargs"]
        if text_kwargs.pop("truncation", False):
            raise ValueError("Truncation would cut images in two; shorten the text instead.")
        rows = self.read_codes(codes, images, **images_kwargs)
        if text is None:
            text = [IMAGE_PLACEHOLDER] * len(rows)
        texts = [text] if isinstance(text, str) else list(text)
        if isinstance(text, Mapping) or not all(isinstance(sample, str) for sample in texts):
            raise TypeError("text is expected to be a text or a list of texts.")
        check_placeholders(texts, codes if images is None else images, len(rows), are_codes=images is None)
        image_ids = iter([self.image_ids(row) for row in rows])
        sequences = []
        for sample in texts:
            ids = self._fill(sample, image_ids)
            opens = ids[-1:] == [self.boi_token_id]
            self.split_images(ids[:-1] if opens else ids)  # raises if visual tokens in the text form no whole image
            if text_kwargs["add_special_tokens"] and (place := self._sos_place(ids)) is not None:
                ids.insert(place, self._sos_token_id)
            sequences.append(ids)
        names = ("padding", "padding_side", "max_length", "return_tensors")
        return self.pad_ids(sequences, **{name: text_kwargs[name] for name in names if name in text_kwargs})

    def pad_ids(
        self,
        sequences: list[list[int]],
        padding: bool | str = True,
        padding_side: str = "left",
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """
        Pad sequences of ids to a batch: `input_ids` and `attention_mask`, `(batch, length)`.

        Raises:
            ValueError: there is no sequence, or one is longer than `max_length`.
        """
        if not sequences:
            raise ValueError("There is nothing to make a prompt of: give at least one text, image or question.")
        lengths = [len(ids) for ids in sequences]
        if max_length is not None and max(lengths) > max_length:
            raise ValueError(
                f"Text {lengths.index(max(lengths))} has {max(lengths)} tokens with its images, more than the "
                f"{max_length} that fit; shorten it, or give it fewer images ({self.num_codes + 2} tokens each)."
            )
        # transformers would warn that padding while encoding is faster, which is not possible with codes.
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        padded = self.tokenizer.pad(
            {"input_ids": sequences},
            padding=padding,
            padding_side=padding_side,
            max_length=max_length if padding == "max_length" else None,
            return_attention_mask=True,
            return_tensors=return_tensors,
        )
        return BatchFeature(dict(padded))

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):
        """
        Render a conversation, or tokenise it, as transformers does.

        Templates may use `caption_prompt` and `question_prompt` beside transformers' own variables. Two come with the
        processor. "default" speaks the paper's prompts: words about an image are a question, an image alone asks for
        its caption. "instruction" is `USER: ... ASSISTANT: ...`, for models that were tuned on that. To label the
        assistant's tokens call `instruction_example`, not `return_assistant_tokens_mask`.

        The images of a conversation may be given by their codes, `{"type": "image", "codes": ...}`, as in the data for
        `instruction_example`. Then all of them must be.

        Raises:
            ValueError: the processor has no template of that name; some images are given as codes and some are not.
        """
        named = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        if chat_template is not None and chat_template not in named and "{" not in chat_template:
            raise ValueError(
                f"chat_template is {chat_template!r}; expected {', '.join(map(repr, named))}, or a template itself."
            )
        template = named.get(chat_template or "default", chat_template) or ""
        prompts = {"caption_prompt": self.caption_prompt, "question_prompt": self.question_prompt}
        prompts = {name: value for name, value in prompts.items() if name in template}
        if kwargs.get("tokenize"):
            several = len(conversation) > 0 and not isinstance(conversation[0], dict)
            codes = [row for messages in (conversation if several else [conversation]) for row in given_codes(messages)]
            if codes:  # transformers 5.17 reads either `processor_kwargs` or what is given flat, not both
                flat = {name: kwargs.pop(name) for name in _TOKENIZER_ARGUMENTS if name in kwargs}
                kwargs["processor_kwargs"] = {"codes": codes} | flat | (kwargs.get("processor_kwargs") or {})
        return super().apply_chat_template(conversation, chat_template=chat_template, **prompts | kwargs)

    # Words and images out --------------------------------------------------------------------------------------------

    def post_process_multimodal_output(
        self,
        generated_outputs,
        skip_special_tokens: bool = True,
        generation_mode: str | None = "interleaved",
        allow_incomplete: bool = False,
        **decode_kwargs,
    ) -> list:
        """
        Turn the ids that a model has written into words, codes or pictures.

        Args:
            generated_outputs: ids, `(batch, length)`, `(length,)` or lists; with or without the prompt.
            skip_special_tokens: leave out SOS, EOS and padding.
            generation_mode: "interleaved" gives a list per row, of texts (without space around them) and codes
                `(num_codes,)`, in order. "text" or None gives a text per row, without its images, as transformers'
                pipelines expect. "image" draws each row's last image, a PIL image per row (`image_codes` and `draw`).
            allow_incomplete: give the codes of an image that was cut short, fewer than `num_codes`, instead of raising.
            decode_kwargs: arguments of the tokenizer's `decode`.

        Raises:
            ValueError: an image is cut short or misplaced; a row has no image in mode "image"; the mode is unknown.
        """
        rows = id_rows(generated_outputs)
        decode_kwargs["skip_special_tokens"] = skip_special_tokens
        if generation_mode in (None, "text"):
            words = [[token for token in row if token < self.boi_token_id] for row in rows]
            return [self.tokenizer.decode(row, **decode_kwargs) for row in words]
        if generation_mode not in ("interleaved", "image"):
            raise ValueError(f"generation_mode is {generation_mode!r}; expected 'text', 'image' or 'interleaved'.")
        if generation_mode == "image":
            return self.draw(self.image_codes(rows))
        return [self._decode_parts(self.split_images(row, allow_incomplete), decode_kwargs) for row in rows]

    def draw(self, codes: torch.LongTensor, **kwargs) -> list:
        """
        Draw codes, `(batch, num_codes)`, with the repository's decoder, which is loaded when first needed.

        Args:
            kwargs: arguments of [`draw_codes`](decoder_seed.py), such as `generator`, `num_inference_steps` and
                `guidance_scale`.

        Returns:
            A PIL image per row, or what `output_type` asks for.

        Raises:
            ValueError: the processor was not loaded from a repository.
        """
        if self.repository is None:
            raise ValueError(
                "This processor was not loaded from a repository, so it does not know its decoder: draw with a "
                "SeedPipeline instead, pipeline(codes=...)."
            )
        from .decoder_seed import draw_codes, load_decoder  # imports diffusers, which nothing else here needs

        settings = self.repository.settings()
        if self._decoder is None:
            pointer, folder = self.decoder_repository, None
            # A pointer that was set since loading starts at the repository all the same, not at the working directory.
            if pointer is not None and pointer != settings.get("decoder"):
                folder = self.repository.follow(pointer, ["model_index.json", *DECODER_PARTS])
            decoder = load_decoder(self.repository, self.load_image_tokenizer(), folder, torch.float32)
            decoder.set_progress_bar_config(disable=True)
            self._decoder = decoder.to(self._device)
        for name in ("guidance_scale", "num_inference_steps"):
            if kwargs.get(name) is None and name in settings:
                kwargs[name] = settings[name]
        return draw_codes(self._decoder, self.load_image_tokenizer(), codes, **kwargs).images

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """Return a text per row, without its images, as transformers' pipeline "image-text-to-text" wants it."""
        return self.post_process_multimodal_output(generated_outputs, skip_special_tokens, None, **kwargs)

    def _decode_parts(self, parts: list[tuple[str, list[int]]], decode_kwargs: dict) -> list:
        decoded = []
        for kind, content in parts:
            if kind == "image":
                decoded.append(torch.tensor(content, dtype=torch.long))
            elif words := self.tokenizer.decode(content, **decode_kwargs).strip():
                decoded.append(words)
        return decoded


__all__ = ["SeedProcessor"]
