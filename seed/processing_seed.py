"""SEED's processor: words, images and codes to the token ids of a language model, and back."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AddedToken, BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from .chat_templates_seed import INSTRUCTION_CHAT_TEMPLATE, question_chat_template
from .image_inputs_seed import check_placeholders, flatten_codes, flatten_images, id_rows, images_as_bytes
from .modeling_seed import SeedModel
from .repository_seed import (
    DECODER_PARTS,
    IMAGE_TOKENIZER_FOLDER,
    fetch,
    follow_pointer,
    point_to,
    push_folder,
    read_settings,
    settled_name,
)
from .sequences_seed import IMAGE_PLACEHOLDER, SeedSequencesMixin, given_codes

BOI_TOKEN, EOI_TOKEN, CODE_TOKEN = "<img>", "</img>", "<img_{:05d}>"
# What `processor_config.json` calls the processor's pointers: [`SeedPipeline`] reads the same file.
_POINTERS = {"image_repository": "image_tokenizer", "decoder_repository": "decoder"}
IMAGES_PER_BATCH = 32
_TOKENIZER_ARGUMENTS = ("padding", "padding_side", "truncation", "max_length", "return_tensors")


class SeedProcessor(ProcessorMixin, SeedSequencesMixin):
    """
    Words and any number of images, interleaved, as token ids: `<img>`, the image's codes, `</img>` among the words.

    Only this class maps codes to ids and back. The image tokenizer is loaded when images are first given, from the
    repository that the processor was loaded from; with `codes` it is not needed.

    Args:
        image_processor: [`SeedImageProcessor`].
        tokenizer: of the text model, extended by `extend_tokenizer`; it is made to pad on the left.
        image_repository, decoder_repository: where the image tokenizer and the Stable Diffusion decoder lie: a folder
            relative to the processor's, or a Hub id. In `processor_config.json` they are called `image_tokenizer` and
            `decoder`, and [`SeedPipeline`] reads them, too. None keeps what a saved file says, or else the default.
        num_codes, codebook_size: of the image tokenizer.
        image_tokenizer_hash: [`SeedModel.codes_hash`] of the image tokenizer that the language model was trained with;
            another one is refused. None allows any.
        caption_prompt, question_prompt, drawing_prompt: of the paper (section 4); the trained model knows no others.
        guidance_scale, num_inference_steps: of the diffusion; token_guidance_scale, token_temperature: of the language
            model, when drawing. None keeps what a saved file says, or else the pipeline's default.
        chat_template: a Jinja template, or several by name; that of `question_chat_template` as "default" and
            INSTRUCTION_CHAT_TEMPLATE as "instruction" if None.

    Raises:
        ValueError: the tokenizer's visual tokens are missing or not contiguous.
    """

    image_token = IMAGE_PLACEHOLDER
    unused_input_names = ["pixel_values"]  # images become codes among the ids

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
        self.boi_token_id = _check_visual_tokens(tokenizer, codebook_size)
        tokenizer.padding_side = "left"  # for generation; transformers' pipelines pad by what the tokenizer says
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
        self.guidance_scale = guidance_scale
        self.num_inference_steps = num_inference_steps
        self.token_guidance_scale = token_guidance_scale
        self.token_temperature = token_temperature
        self.name_or_path: str | None = None
        self.hub_options: dict = {}  # that it was loaded with, for what is loaded later from the same repository
        self._device = torch.device("cpu")
        self._image_tokenizer: SeedModel | None = None
        self._decoder = None

    @staticmethod
    def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> PreTrainedTokenizerBase:
        """
        Adds `<img>`, `</img>` and a token per code after the text vocabulary, in place; nothing if they are there.

        Raises:
            ValueError: the tokenizer has some of them already, elsewhere.
        """
        # Not special: "special" tokens vanish when text is decoded, and with them the images.
        tokens = [AddedToken(token, special=False, normalized=False) for token in _visual_tokens(codebook_size)]
        tokenizer.add_tokens(tokens)
        _check_visual_tokens(tokenizer, codebook_size)
        return tokenizer

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that transformers saves and loads; it would count every argument named after a tokenizer, too."""
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """
        As in transformers; remembers where from, so that the image tokenizer can be found later.

        Raises:
            ValueError: a `subfolder` of a Hub repository, in which the image tokenizer would not be found.
        """
        if kwargs.get("subfolder") and Path(pretrained_model_name_or_path).is_dir():
            pretrained_model_name_or_path = Path(pretrained_model_name_or_path) / kwargs.pop("subfolder")
        elif kwargs.get("subfolder"):
            raise ValueError(
                f"subfolder is {kwargs['subfolder']!r}; the image tokenizer and the decoder that go with a processor "
                "are looked for at a repository's top. Download the repository and pass its folder."
            )
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        processor.name_or_path = settled_name(pretrained_model_name_or_path)
        names = ("revision", "token", "cache_dir", "local_files_only")
        processor.hub_options = {name: kwargs[name] for name in names if kwargs.get(name)}
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
        As in transformers. In another folder than the one it was loaded from, `processor_config.json` points to where
        the image tokenizer and the decoder lie, so that what is saved reads and draws images at once.

        Args:
            push_to_hub: saves, then does what `push_to_hub` does; `kwargs` are its arguments, `repo_id` the folder's
                name if not given.
            whole: copies those of them that lie in local folders outside of `save_directory` into it, so that it can be
                moved or uploaded.
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
        """What the file in the folder `root` says of where a part lies."""
        if (root / part).is_dir():
            return part
        found = pointer
        if self.name_or_path is not None and root.resolve() != Path(self.name_or_path).resolve():
            stored = read_settings(fetch(self.name_or_path, self.hub_options, ["*.json"])).get(part)
            if pointer == stored:  # else it was set since, and is taken at its word
                found = point_to(self.name_or_path, part, root, self.hub_options)
        if found is None or not whole or not (root / found).is_dir():
            return pointer if found is None else found
        partial = root / f"{part}.partial"  # what is there under its name is whole
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(root / found, partial)
        partial.rename(root / part)
        return part

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload SeedProcessor", **options) -> str:
        """
        Uploads the processor, and with it the image tokenizer and the decoder if they lie in local folders;
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
        self._image_tokenizer = self._decoder = None  # transformers copies all attributes deeply
        try:
            values = super().to_dict()
        finally:
            self._image_tokenizer, self._decoder = models
        for argument, key in _POINTERS.items():
            values[key] = values.pop(argument, None)
        return {name: value for name, value in values.items() if value is not None}

    def to_json_file(self, json_file_path) -> None:
        """Writes `processor_config.json`, all or nothing, and keeps in it what only [`SeedPipeline`] has set."""
        path = Path(json_file_path)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept.pop("image_tokenizer_hash", None)  # of which None means that any will do, not that nothing is said
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(kept | self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(path)

    # The image tokenizer ---------------------------------------------------------------------------------------------

    def set_image_tokenizer(self, model: SeedModel) -> None:
        """
        Gives the processor a loaded image tokenizer to share it, on any device, where it stays until `to` moves it.

        Raises:
            ValueError: its codes are not those that the processor was made for.
        """
        if not model.config.use_code_branch:
            raise ValueError("This image tokenizer has no codebook (use_code_branch is false); load a finished one.")
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
        Whether a language model reads and writes the ids that this processor makes.

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
        Tokenises images, and draws, on a device from now on; what is not loaded yet will be loaded there.

        transformers' pipelines do not tell their processor where the model runs, so say it once:
        `pipe.processor.to(pipe.device)`. Ids and codes are made on the CPU all the same.
        """
        self._device = torch.device(device)
        for part in (self._image_tokenizer, self._decoder):
            if part is not None:
                part.to(self._device)
        return self

    def load_image_tokenizer(self) -> SeedModel:
        """
        The image tokenizer, loaded in float32 when first asked for, on the CPU unless `to` named another device.

        Raises:
            ValueError: it cannot be told where it lies, or it has other codes (see `set_image_tokenizer`).
            FileNotFoundError, OSError: it is not there.
        """
        if self._image_tokenizer is None:
            pointer = self.image_repository or IMAGE_TOKENIZER_FOLDER
            if self.name_or_path is not None:
                folder = follow_pointer(self.name_or_path, pointer, self.hub_options, [""])
            elif pointer != IMAGE_TOKENIZER_FOLDER:
                folder = fetch(pointer, self.hub_options, ["*.json", "*.safetensors"])
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
        Codes of images, `(images, num_codes)`.

        Args:
            images: an image (PIL, array, tensor, path or address), or lists of them. Arrays and tensors hold 0 .. 255,
                or floats of 0 .. 1, as diffusers returns them; without `do_rescale` what the model is given.
            images_kwargs: of the image processor.
        """
        if images_kwargs.get("do_rescale", self.image_processor.do_rescale):
            images = images_as_bytes(images)
        images = self.image_processor.fetch_images(flatten_images(images))
        if not images:
            return torch.empty(0, self.num_codes, dtype=torch.long)
        model, codes = self.load_image_tokenizer(), []
        for start in range(0, len(images), IMAGES_PER_BATCH):
            batch = self.image_processor(images[start : start + IMAGES_PER_BATCH], return_tensors="pt", **images_kwargs)
            codes.append(model.get_image_tokens(batch["pixel_values"].to(model.device)).cpu())
        return torch.cat(codes)

    # Words and images in ---------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images=None,
        codes=None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        max_length: int | None = None,
        add_special_tokens: bool = True,
        images_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
        **unsupported,
    ) -> BatchFeature:
        """
        Token ids of words and images: each `<image>` in a text becomes `<img> codes </img>` of the next image.

        Args:
            text: one text or a list of them; None for one `<image>` per image.
            images: one image, a list for all texts in order, or a list per text; PIL, arrays, tensors, paths,
                addresses.
            codes: `(images, num_codes)`, or lists of them as of images, instead of `images`.
            return_tensors: "pt", "np", or None for lists.
            padding: True pads to the longest text, "max_length" to `max_length`, False not at all.
            padding_side: "left", for generation, or "right".
            max_length: longer sequences are an error; the model's context, for example. Nothing is truncated, because
                half an image is none.
            add_special_tokens: put SOS before the first word (after images that come before it).
            images_kwargs: for the image processor, which may also be given among the other arguments. text_kwargs:
                the arguments above that concern text, as transformers' pipelines pass them; they count where an
                argument is given twice.

        Returns:
            `input_ids` and `attention_mask`, `(batch, length)`.

        Raises:
            ValueError: placeholders and images disagree; codes of another shape or range; visual tokens in the text
                that form no whole image; a text that is too long; `truncation`; an image processor's argument given
                twice.
            TypeError: an unknown argument; a text of another type.
        """
        if text_kwargs:
            named = {
                "return_tensors": return_tensors,
                "padding": padding,
                "padding_side": padding_side,
                "max_length": max_length,
                "add_special_tokens": add_special_tokens,
            }
            return self(text, images, codes, images_kwargs=images_kwargs, **unsupported | named | text_kwargs)
        of_images = self.image_processor.valid_kwargs.__annotations__.keys() & unsupported.keys()
        if twice := sorted(of_images & (images_kwargs or {}).keys()):
            raise ValueError(f"{twice[0]!r} is given twice, in images_kwargs and beside it; give it once.")
        images_kwargs = {name: unsupported.pop(name) for name in of_images} | (images_kwargs or {})
        _refuse(unsupported)
        rows = self._codes_or_images(codes, images, **images_kwargs)
        if text is None:
            if not len(rows):
                raise ValueError("Pass text, images or codes.")
            text = [IMAGE_PLACEHOLDER] * len(rows)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("text is an empty list; expected at least one text.")
        if isinstance(text, Mapping) or not all(isinstance(sample, str) for sample in texts):
            raise TypeError("text is expected to be a text or a list of texts.")
        check_placeholders(texts, codes if images is None else images, len(rows), are_codes=images is None)
        image_ids = iter([self.image_ids(row) for row in rows])
        sequences = []
        for sample in texts:
            ids = self._fill(sample, image_ids)
            opens = ids[-1:] == [self.boi_token_id]
            self.split_images(ids[:-1] if opens else ids)  # raises where visual tokens in the text form no image
            if add_special_tokens and (place := self._sos_place(ids)) is not None:
                ids.insert(place, self._sos_token_id)
            sequences.append(ids)
        return self._pad(sequences, padding, padding_side, max_length, return_tensors)

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):
        """
        As in transformers. Templates may use `caption_prompt` and `question_prompt` beside its own variables.

        Images of the conversation may be given as codes instead, `{"type": "image", "codes": ...}`, as `instruction`
        data has them; then all of them.

        Two come with the processor. "default" speaks the paper's prompts: words about an image are a question, an
        image alone asks for its caption. "instruction" is `USER: ... ASSISTANT: ...`, for models tuned on that.

        Raises:
            ValueError: the processor has no template of that name; some images are codes and some are not;
                `return_assistant_tokens_mask`.
        """
        if kwargs.get("return_assistant_tokens_mask"):
            raise ValueError(
                "return_assistant_tokens_mask is not supported; instruction_example labels the assistant's tokens."
            )
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
            if codes:  # transformers 5.17 reads either of both: the processor's own arguments, or what is given flat
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
        What a model has written.

        Args:
            generated_outputs: ids, `(batch, length)`, `(length,)` or lists; with or without the prompt.
            skip_special_tokens: leave out SOS, EOS and padding.
            generation_mode: "interleaved" gives a list per row, of texts (without space around them) and codes
                `(num_codes,)`, in order. "text" or None gives a text per row, without its images, as transformers'
                pipelines expect. "image" draws each row's last image, a PIL image per row (`image_codes` and `draw`).
            allow_incomplete: give the codes of an image that was cut short, fewer than `num_codes`, instead of raising.
            decode_kwargs: of the tokenizer's `decode`.

        Raises:
            ValueError: an image that is cut short or misplaced; no image in mode "image"; an unknown mode.
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

    def image_codes(self, ids) -> torch.LongTensor:
        """
        Codes of the last image of each row, `(batch, length)` -> `(batch, num_codes)`.

        Raises:
            ValueError: a row has no image, or one that is cut short or misplaced.
        """
        images = [[part for kind, part in self.split_images(row) if kind == "image"] for row in id_rows(ids)]
        if not all(images):
            raise ValueError(f"Row {[bool(found) for found in images].index(False)} has no image.")
        return torch.tensor([found[-1] for found in images])

    def draw(self, codes: torch.LongTensor, **kwargs) -> list:
        """
        PIL images of codes, `(batch, num_codes)`, by the repository's decoder, which is loaded when first needed.

        Args:
            kwargs: of [`SeedPipeline`]'s call (`generator`, `num_inference_steps`, `guidance_scale`, ...).

        Raises:
            ValueError: the processor was not loaded from a repository.
        """
        if self._decoder is None:
            from .pipeline_seed import SeedPipeline  # needs diffusers, which nothing else here does

            if self.name_or_path is None:
                raise ValueError("This processor was not loaded from a repository: draw with SeedPipeline(codes=...).")
            pointer, decoder = self.decoder_repository, None
            stored = read_settings(fetch(self.name_or_path, self.hub_options, ["*.json"])).get("decoder")
            if pointer not in (None, stored):  # set since; a pointer all the same, not a path from here
                decoder = follow_pointer(
                    self.name_or_path, pointer, self.hub_options, ["model_index.json", *DECODER_PARTS]
                )
            self._decoder = SeedPipeline.from_pretrained(
                self.name_or_path,
                decoder=decoder,
                image_tokenizer=self.load_image_tokenizer(),
                dtype=torch.float32,
                **self.hub_options,
            )
            self._decoder.to(self._device)
            self._decoder.set_progress_bar_config(disable=True)
        return self._decoder(codes=codes, **kwargs).images

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """A text per row, without its images: what transformers' pipeline "image-text-to-text" asks for."""
        return self.post_process_multimodal_output(generated_outputs, skip_special_tokens, None, **kwargs)

    def _decode_parts(self, parts: list[tuple[str, list[int]]], decode_kwargs: dict) -> list:
        decoded = []
        for kind, content in parts:
            if kind == "image":
                decoded.append(torch.tensor(content, dtype=torch.long))
            elif words := self.tokenizer.decode(content, **decode_kwargs).strip():
                decoded.append(words)
        return decoded

    # Parts -----------------------------------------------------------------------------------------------------------

    def _codes_or_images(self, codes, images, **images_kwargs) -> torch.LongTensor | list:
        """Codes of all images, in order, `(images, num_codes)`."""
        if codes is not None and images is not None:
            raise ValueError("Pass either images or codes, not both.")
        if codes is not None:
            return flatten_codes(codes)
        return [] if images is None else self.tokenize_images(images, **images_kwargs)

    def _pad(
        self,
        sequences: list[list[int]],
        padding: bool | str = True,
        side: str = "left",
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        if not sequences:
            raise ValueError("There is nothing to make a prompt of: no text, image or question was given.")
        lengths = [len(ids) for ids in sequences]
        if max_length is not None and max(lengths) > max_length:
            raise ValueError(
                f"Text {lengths.index(max(lengths))} has {max(lengths)} tokens with its images, more than the "
                f"{max_length} that fit; shorten it, or give it fewer images ({self.num_codes + 2} tokens each)."
            )
        if padding not in (True, False, "longest", "max_length", "do_not_pad", None) or side not in ("left", "right"):
            raise ValueError(f"padding is {padding!r} on side {side!r}; expected True, 'max_length' or False.")
        if padding == "max_length" and max_length is None:
            raise ValueError("padding='max_length' needs max_length.")
        width = max_length if padding == "max_length" else max(lengths)
        if padding in (False, "do_not_pad", None):
            if return_tensors is not None and len(set(lengths)) > 1:
                raise ValueError(f"Texts of {lengths} tokens make no tensor; pass padding=True or return_tensors=None.")
            width = 0
        pad = self.tokenizer.pad_token_id
        pad = self._eos_token_id if pad is None else pad
        ids, masks = [], []
        for sequence in sequences:
            gap = max(width - len(sequence), 0)
            filler, mask = [pad] * gap, [1] * len(sequence)
            ids.append(filler + sequence if side == "left" else sequence + filler)
            masks.append([0] * gap + mask if side == "left" else mask + [0] * gap)
        return BatchFeature({"input_ids": ids, "attention_mask": masks}, tensor_type=return_tensors)


def _visual_tokens(codebook_size: int) -> list[str]:
    return [BOI_TOKEN, EOI_TOKEN, *(CODE_TOKEN.format(code) for code in range(codebook_size))]


def _check_visual_tokens(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> int:
    """The id of `<img>`, if `</img>` and the codes follow it without a gap and nothing follows them."""
    vocabulary, wanted = tokenizer.get_vocab(), _visual_tokens(codebook_size)
    missing = next((token for token in wanted if token not in vocabulary), None)
    if missing is not None:
        raise ValueError(
            f"The tokenizer has no token {missing}; a codebook of {codebook_size} codes needs <img>, </img> and "
            f"{wanted[2]} ... {wanted[-1]}: call SeedProcessor.extend_tokenizer(tokenizer, codebook_size) on the text "
            "model's own tokenizer."
        )
    first = len(tokenizer) - len(wanted)
    for place, token in enumerate(wanted):
        if vocabulary[token] != first + place:
            raise ValueError(
                f"The tokenizer's {token} has the id {vocabulary[token]}; expected {first + place}: of "
                f"{len(tokenizer)} ids, the last {len(wanted)} must be <img>, </img> and the {codebook_size} codes, in "
                "order. Extend the text model's own tokenizer afresh, with the image tokenizer's codebook_size."
            )
    return first


def _refuse(unsupported: dict) -> None:
    given = {name: value for name, value in unsupported.items() if value not in (None, False)}
    if "truncation" in given:
        raise ValueError("Truncation would cut images in two; shorten the text instead.")
    if given:
        raise TypeError(f"Unknown argument {sorted(given)[0]!r}; see SeedProcessor.__call__.")


__all__ = ["SeedProcessor"]
