"""The diffusers pipeline of SEED: images, codes or words in, images out, drawn by any Stable Diffusion 1.x model."""

import contextlib
import copy
import inspect
import json
import operator
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_seed import SeedConfig
from .generation_seed import FROM_ALL_TOKENS, sampling_options
from .image_inputs_seed import flatten_images, images_as_bytes
from .image_processing_seed import SeedImageProcessorPil
from .modeling_seed import SeedModel, own_tensor
from .modeling_seed_llama import SeedLlamaForCausalLM
from .modeling_seed_opt import SeedOPTForCausalLM
from .processing_seed import IMAGES_PER_BATCH, SeedProcessor
from .repository_seed import (
    DECODER_FOLDER,
    IMAGE_TOKENIZER_FOLDER,
    fetch,
    is_weight,
    read_json,
    read_settings,
    remove_weights,
    resolve_decoder,
    resolve_image_tokenizer,
    settled_name,
    turn,
    weight_variant,
    write_settings,
)

# What a repository says about drawing, in the file that the pipeline shares with SeedProcessor.
SETTINGS = ("guidance_scale", "num_inference_steps", "token_guidance_scale", "token_temperature")
_LANGUAGE_MODELS = {model.config_class.model_type: model for model in (SeedOPTForCausalLM, SeedLlamaForCausalLM)}


@dataclass
class SeedPipelineOutput(BaseOutput):
    """
    Args:
        images: list of PIL images, or `(batch, height, width, 3)` for `output_type="np"`.
        codes: `(batch, num_codes)`, from which they were drawn.
    """

    images: list[Image.Image] | np.ndarray
    codes: torch.LongTensor


@dataclass(frozen=True)
class _Source:
    """
    Where `from_pretrained` found a pipeline's parts; `save_pretrained` takes from there what was not loaded.

    Args:
        image_tokenizer: folder of the image tokenizer.
        name, decoder, hub_options: what `resolve_decoder` takes.
        variant: of the decoder's weights.
    """

    image_tokenizer: Path
    name: str | Path
    decoder: str | Path | None
    hub_options: dict
    variant: str | None


class SeedPipeline(DiffusionPipeline, StableDiffusionMixin):
    """
    Draws images from SEED codes (paper, section 3.2: the generation embeddings take the place of Stable Diffusion's
    text features), and with a language model from words.

    Args:
        image_tokenizer: [`SeedModel`].
        unet, vae, scheduler: of a Stable Diffusion 1.x model. Any scheduler that its pipeline takes may be set.
        image_processor: [`SeedImageProcessor`], for images.
        text_encoder, tokenizer: of the Stable Diffusion model; needed only where the image tokenizer does not hold the
            empty prompt's features.
        language_model, processor: [`SeedOPTForCausalLM`] or another SEED language model and its [`SeedProcessor`], to
            draw from prompts.
        guidance_scale, num_inference_steps: what `__call__` uses if not told otherwise; saved with the pipeline.
        token_guidance_scale: likewise, of the language model; 1 is off.
        token_temperature: likewise, at which the codes are sampled; 0 takes the likeliest code each time.

    Raises:
        ValueError: parts that were not made for each other.
    """

    model_cpu_offload_seq = "language_model->text_encoder->image_tokenizer->unet->vae"
    _optional_components = ["text_encoder", "tokenizer", "language_model", "processor"]

    def __init__(
        self,
        image_tokenizer: SeedModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: KarrasDiffusionSchedulers,
        image_processor: BaseImageProcessor,
        text_encoder: CLIPTextModel | None = None,
        tokenizer=None,
        language_model: PreTrainedModel | None = None,
        processor: SeedProcessor | None = None,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 50,
        token_guidance_scale: float = 1.0,
        token_temperature: float = 0.0,
    ):
        super().__init__()
        generation_dim, wanted = image_tokenizer.config.generation_dim, unet.config.cross_attention_dim
        if generation_dim != wanted:
            raise ValueError(
                f"This UNet reads text features of width {wanted}, but the image tokenizer's generation embeddings "
                f"have width {generation_dim}: they were not trained for each other. Stable Diffusion 1.x has 768."
            )
        if (language_model is None) != (processor is None):
            raise ValueError("language_model and processor come together: pass both or neither.")
        if language_model is not None:
            processor.check_language_model(language_model)
            _check_same_codebook(language_model, image_tokenizer)
        self.register_modules(
            image_tokenizer=image_tokenizer,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            image_processor=image_processor,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            language_model=language_model,
            processor=processor,
        )
        self.register_to_config(
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            token_guidance_scale=token_guidance_scale,
            token_temperature=token_temperature,
        )
        self._source: _Source | None = None

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        decoder: str | Path | None = None,
        image_tokenizer: SeedModel | None = None,
        language_model: PreTrainedModel | bool = False,
        processor: SeedProcessor | None = None,
        dtype: torch.dtype | str = "auto",
        variant: str | None = None,
        unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        scheduler: KarrasDiffusionSchedulers | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **hub_options,
    ) -> "SeedPipeline":
        """
        Assembles the pipeline from a repository with the folders `image_tokenizer` and `decoder`, or with pointers to
        other repositories in their place. Only what is used is downloaded.

        Args:
            pretrained_model_name_or_path: a local folder or a Hub id; also the image tokenizer's own, if `decoder` is
                given.
            decoder: a Stable Diffusion 1.x repository or folder to use instead of the one that is named there; a folder
                that exists is that folder, also where the repository has one of its name.
            image_tokenizer: an already loaded [`SeedModel`], to share it.
            language_model: True loads the repository's language model and processor, too; or an already loaded one.
            processor: an already loaded [`SeedProcessor`], to share it.
            dtype: of all weights; "auto" takes that in which the image tokenizer was saved. Codes that are stored or
                compared should be made in float32.
            variant: of the decoder's weights, e.g. "fp16"; None takes a variant where that is all there is.
            unet, vae, scheduler: already loaded ones, instead of the decoder's.
            torch_dtype: `dtype` by its older name.
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only` for the Hub.

        Raises:
            FileNotFoundError, OSError: a folder or file is missing.
            ValueError: no decoder is named, or it does not fit the image tokenizer.
        """
        unknown = sorted(hub_options.keys() - {"revision", "token", "cache_dir", "local_files_only"})
        if unknown:
            raise TypeError(f"Unknown argument {unknown[0]!r}; see SeedPipeline.from_pretrained.")
        dtype = _read_dtype(dtype if torch_dtype is None else torch_dtype)
        settings = read_settings(fetch(pretrained_model_name_or_path, hub_options, ["*.json"]))
        tokenizer_folder = resolve_image_tokenizer(pretrained_model_name_or_path, **hub_options)
        if image_tokenizer is None:
            image_tokenizer = SeedModel.from_pretrained(tokenizer_folder, use_text_branch=False, dtype=dtype)
        image_tokenizer.eval()
        weights_dtype = image_tokenizer.dtype if dtype == "auto" else dtype

        text_parts = [] if image_tokenizer.config.has_empty_prompt_embeds else ["text_encoder/", "tokenizer/"]
        decoder_folder = resolve_decoder(
            pretrained_model_name_or_path, decoder, ("unet/", "vae/", "scheduler/", *text_parts), variant, **hub_options
        )
        text = {}
        if text_parts:
            folder = decoder_folder / "text_encoder"
            text["text_encoder"] = load_complete(CLIPTextModel, folder, weights_dtype, variant)
            text["tokenizer"] = AutoTokenizer.from_pretrained(decoder_folder / "tokenizer")
        if language_model is True:
            language_model = load_language_model(pretrained_model_name_or_path, dtype=dtype, **hub_options)
        if language_model and processor is None:
            processor = SeedProcessor.from_pretrained(pretrained_model_name_or_path, **hub_options)
        stable_diffusion = StableDiffusionPipeline.from_pretrained(
            decoder_folder,
            unet=unet or load_complete(UNet2DConditionModel, decoder_folder / "unet", weights_dtype, variant),
            vae=vae or load_complete(AutoencoderKL, decoder_folder / "vae", weights_dtype, variant),
            text_encoder=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **({} if scheduler is None else {"scheduler": scheduler}),
        )
        pipeline = cls(
            image_tokenizer=image_tokenizer,
            unet=stable_diffusion.unet,
            vae=stable_diffusion.vae,
            scheduler=stable_diffusion.scheduler,
            image_processor=SeedImageProcessorPil.from_pretrained(tokenizer_folder),
            language_model=language_model or None,
            processor=processor if language_model else None,
            **text,
            **{key: settings[key] for key in SETTINGS if key in settings},
        )
        name = settled_name(pretrained_model_name_or_path)
        decoder = decoder and settled_name(decoder)
        pipeline._source = _Source(tokenizer_folder.absolute(), name, decoder, hub_options, variant)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """
        Saves the pipeline as a repository of the house: `image_tokenizer/`, `decoder/` (a stock Stable Diffusion
        repository) and `processor_config.json`; the language model and its processor, if there are, at the top.

        What `from_pretrained` had no use for comes from where it loaded the rest: the image tokenizer's text branch,
        text tokenizer and captions (unless the image tokenizer is another one since), and the decoder's text encoder
        and tokenizer. `save_directory` may be the very folder that the pipeline was loaded from.

        Args:
            kwargs: as of `DiffusionPipeline.save_pretrained`, applied to the decoder (`variant`, `max_shard_size`).

        Raises:
            ValueError: the language model was trained with another image tokenizer, or one of other precision; asked
                to push, or to pickle.
            FileNotFoundError, OSError: what the pipeline was loaded from is no longer there.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("Save first, then push with pipeline.push_to_hub(repo_id).")
        if not kwargs.get("safe_serialization", True):
            raise ValueError("safe_serialization is False; weights are saved as safetensors only.")
        root = Path(save_directory)
        self.check_image_tokenizer_hash(root)
        with replacing_files(root) as partial:
            self._save_image_tokenizer(partial / IMAGE_TOKENIZER_FOLDER)
            self._save_decoder(partial / DECODER_FOLDER, **kwargs)
            if self.language_model is not None:
                self.language_model.save_pretrained(partial)
        if self.processor is not None:
            self.processor.save_pretrained(root)
        settings = read_settings(root) | {
            "image_tokenizer": IMAGE_TOKENIZER_FOLDER,
            "decoder": DECODER_FOLDER,
            **{key: self.config[key] for key in SETTINGS},
        }
        write_settings(root, settings)

    def check_image_tokenizer_hash(self, root: str | Path) -> None:
        """
        Whether the image tokenizer, as it would be saved, makes the codes that the language model was trained with.

        Args:
            root: the folder to save to; if the pipeline was loaded from there, the language model that was left out in
                loading counts, too.

        Raises:
            ValueError: it does not.
        """
        if self.language_model is not None:
            trained = self.language_model.config.image_tokenizer_hash or self.processor.image_tokenizer_hash
        elif self._source and Path(self._source.name).resolve() == Path(root).resolve():
            trained = read_settings(Path(root)).get("image_tokenizer_hash")
        else:
            trained = None
        if trained is not None and (own := self.image_tokenizer.codes_hash()) != trained:
            raise ValueError(
                f"The image tokenizer's weights, in {self.image_tokenizer.dtype}, have the hash {own[:12]}..., but the "
                f"language model beside which they would be saved was trained with {trained[:12]}...: that repository "
                "would refuse to read pictures. Load the pipeline in the dtype that the image tokenizer was stored in, "
                "SeedPipeline.from_pretrained(..., dtype='auto') (pipeline('text-to-image') takes it as decoder=), and "
                "save that; or save in another folder, without the language model."
            )

    def _save_image_tokenizer(self, folder: Path) -> None:
        model = self.image_tokenizer
        source = self._source and self._source.image_tokenizer
        if source and Path(model.name_or_path).resolve() == source.resolve():
            folder.mkdir(parents=True)
            for file in (*source.glob("*.json"), *source.glob("*.txt")):  # text tokenizer, captions
                if not file.name.endswith(".index.json"):
                    shutil.copyfile(file, folder / file.name)
            if not model.config.use_text_branch and SeedConfig.from_pretrained(source).use_text_branch:
                model = _with_text_branch(model, source)
        model.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def _save_decoder(self, folder: Path, **kwargs) -> None:
        self._stable_diffusion().save_pretrained(folder, **kwargs)
        absent = [part for part in ("text_encoder", "tokenizer") if getattr(self, part) is None]
        if self._source is None or not absent:
            return
        source = self._source
        stored = resolve_decoder(
            source.name, source.decoder, tuple(f"{part}/" for part in absent), source.variant, **source.hub_options
        )
        index, copied = read_json(stored / "model_index.json"), {}
        for part in absent:
            if part not in index or not (stored / part).is_dir():
                continue
            if part == "text_encoder":  # in the variant that is saved, not the one that was loaded
                encoder = load_complete(CLIPTextModel, stored / part, "auto", source.variant)
                encoder.save_pretrained(folder / part, variant=kwargs.get("variant"))
            else:
                shutil.copytree(stored / part, folder / part)
            copied[part] = index[part]
        path = folder / "model_index.json"
        path.write_text(json.dumps(read_json(path) | copied, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    # Drawing ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tokenize_images(self, images) -> torch.LongTensor:
        """
        Codes of images, `(batch, num_codes)`.

        Args:
            images: a PIL image, a path, an array or a tensor, or a list of them. Floats of 0 .. 1 are what diffusers
                returns for "np" and "pt".
        """
        images = self.image_processor.fetch_images(flatten_images(images_as_bytes(images)))
        if not images:
            raise ValueError("images is empty; expected at least one.")
        # accelerate's offloading listens to forward only, which would go on to decode the codes.
        tokenize, codes = apply_forward_hook(lambda model, *args: model.get_image_tokens(*args)), []
        for start in range(0, len(images), IMAGES_PER_BATCH):
            batch = self.image_processor(images[start : start + IMAGES_PER_BATCH], return_tensors="pt")
            codes.append(tokenize(self.image_tokenizer, batch["pixel_values"].to(self._execution_device)))
        return torch.cat(codes)

    @torch.no_grad()
    def encode_codes(self, codes: torch.LongTensor, prefix_length: int | Sequence[int] | None = None) -> torch.Tensor:
        """
        Generation embeddings of codes, `(batch, 77, generation_dim)`, in the UNet's dtype: `prompt_embeds` for any
        Stable Diffusion 1.x pipeline (img2img, ControlNet, GLIGEN, ...).

        Args:
            codes: `(batch, num_codes)`.
            prefix_length: use the first k codes only; a number for all rows, or one per row.
        """
        codes = codes.to(self._execution_device)
        if isinstance(prefix_length, bool):
            raise TypeError(f"prefix_length is {prefix_length}; expected a number of codes, or one per row.")
        if prefix_length is not None and not np.iterable(prefix_length):
            prefix_length = operator.index(prefix_length)
        if prefix_length is None or isinstance(prefix_length, int):
            # Through forward, where accelerate's offloading listens.
            outputs = self.image_tokenizer(codes=codes, prefix_length=prefix_length)
            return outputs.generation_embeddings.to(self.unet.dtype)
        prefix_length = [operator.index(length) for length in prefix_length]  # tensors' elements are no keys
        if len(prefix_length) != len(codes):
            raise ValueError(f"Got {len(prefix_length)} prefix lengths for {len(codes)} rows of codes.")
        rows = {k: [row for row, length in enumerate(prefix_length) if length == k] for k in set(prefix_length)}
        embeds = torch.cat([self.encode_codes(codes[rows[k]], k) for k in rows])
        order = torch.tensor([row for k in rows for row in rows[k]], device=embeds.device)
        return embeds[order.argsort()]

    @torch.no_grad()
    def encode_empty_prompt(self) -> torch.Tensor:
        """The text features of the empty prompt, `(1, 77, generation_dim)`: `negative_prompt_embeds` for guidance."""
        if self.image_tokenizer.config.has_empty_prompt_embeds:
            embeds = own_tensor(self.image_tokenizer, "empty_prompt_embeds")
        elif self.text_encoder is not None and self.tokenizer is not None:
            length = self.image_tokenizer.config.reverse_qformer_config.num_queries
            inputs = self.tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            embeds = self.text_encoder(inputs.input_ids.to(self._execution_device)).last_hidden_state
        else:
            raise ValueError(
                "Guidance needs the text features of the empty prompt. This image tokenizer does not hold them: give "
                "the pipeline the decoder's text_encoder and tokenizer, call image_tokenizer.set_empty_prompt_embeds, "
                "or draw with guidance_scale=1."
            )
        return embeds.to(self._execution_device, self.unet.dtype)

    @torch.no_grad()
    def generate_codes(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        token_guidance_scale: float | None = None,
        token_temperature: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **generate_kwargs,
    ) -> torch.LongTensor:
        """
        Codes that the language model writes for prompts, `(batch * num_images_per_prompt, num_codes)`.

        Args:
            prompt: one or more captions; "" draws unconditionally.
            num_images_per_prompt: rows per prompt: different ones where the model samples, else the same one repeated.
            token_guidance_scale: guidance against the empty prompt; the pipeline's setting if None, 1 is off.
            token_temperature: at which codes are sampled, from all of them unless `generate_kwargs` limit the choice;
                the pipeline's setting if None, 0 takes the likeliest code each time.
            generator: seeds the sampling; a list, one per row, samples each row by itself.
            generate_kwargs: of the language model's `generate` (`top_k`, `top_p`, `num_beams`, ...). `temperature`,
                `do_sample` and `generation_config` overrule `token_temperature`; a `temperature` above 0 samples.

        Raises:
            ValueError: there is no language model, or no prompt; a prompt does not fit into its context; a negative
                temperature; another number of generators than of drawings; `return_dict_in_generate`;
                `num_return_sequences`.
        """
        if self.language_model is None:
            raise ValueError(
                "Drawing from a prompt needs a language model: load the pipeline with "
                "SeedPipeline.from_pretrained(..., language_model=True) from a repository that has one."
            )
        if token_guidance_scale is None:
            token_guidance_scale = self.config.token_guidance_scale
        generate_kwargs = _choosing_options(token_temperature, self.config.token_temperature, generate_kwargs)
        if generate_kwargs.get("return_dict_in_generate"):
            raise ValueError(
                "return_dict_in_generate does not work here, where codes alone come back; for scores and the like call "
                "language_model.generate(**processor.drawing_prompts(...), generation_mode='image')."
            )
        stored = getattr(generate_kwargs.get("generation_config"), "num_return_sequences", None)
        if (several := generate_kwargs.get("num_return_sequences") or stored or 1) != 1:
            raise ValueError(
                f"num_return_sequences is {several}, but every prompt gets one row here; pass "
                "num_images_per_prompt for several drawings of each."
            )
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [text for text in prompts for _ in range(num_images_per_prompt)]
        samples = generate_kwargs.get("do_sample", getattr(generate_kwargs.get("generation_config"), "do_sample", None))
        if samples and isinstance(generator, list):
            if len(generator) != len(prompts):
                raise ValueError(f"Got {len(generator)} generators for {len(prompts)} drawings.")
            groups = [([text], one) for text, one in zip(prompts, generator)]
        else:
            groups = [(prompts, generator)]
        rows = []
        for texts, one in groups:
            inputs = self.processor.drawing_prompts(texts).to(self._execution_device)
            with _seeded(one if samples else None, self._execution_device):
                written = self.language_model.generate(
                    **inputs,
                    generation_mode="image",
                    token_guidance_scale=token_guidance_scale,
                    unconditional_ids=self.processor.unconditional_prompt().to(self._execution_device),
                    **generate_kwargs,
                )
            rows.append(self.processor.image_codes(written))
        return torch.cat(rows)

    def check_inputs(
        self, images, codes, prompt, num_images_per_prompt: int = 1, num_inference_steps: int | None = None, options=()
    ) -> None:
        if [images is None, codes is None, prompt is None].count(False) != 1:
            raise ValueError("Pass either images (to reconstruct), or codes, or a prompt (to draw).")
        if codes is not None and not isinstance(codes, torch.Tensor):
            raise TypeError(f"codes are a {type(codes).__name__}; expected an integer tensor (batch, num_codes).")
        for name, given in (("codes", codes), ("prompt", prompt)):
            if given is not None and not isinstance(given, str) and not len(given):
                raise ValueError(f"{name} is empty; expected at least one.")
        counts = {"num_images_per_prompt": num_images_per_prompt, "num_inference_steps": num_inference_steps}
        for name, given in counts.items():
            if given is not None and given < 1:
                raise ValueError(f"{name} is {given}; expected 1 or more.")
        # diffusers' pipeline takes any other word in silence.
        unknown = sorted(set(options) - inspect.signature(StableDiffusionPipeline.__call__).parameters.keys())
        if unknown:
            advice = " For a seed, pass generator=torch.Generator().manual_seed(seed)." if "seed" in unknown else ""
            raise TypeError(
                f"Unknown argument {unknown[0]!r}; neither SeedPipeline nor StableDiffusionPipeline has one.{advice}"
            )

    @torch.no_grad()
    def __call__(
        self,
        images=None,
        codes: torch.LongTensor | None = None,
        prefix_length: int | Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        prompt: str | Sequence[str] | None = None,
        token_guidance_scale: float | None = None,
        token_temperature: float | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> SeedPipelineOutput | tuple:
        """
        Draws images from codes or from words, or reconstructs images through their codes.

        Args:
            images: a PIL image, a path, an array or a tensor, or a list of them; tokenised first.
            codes: `(batch, num_codes)`, instead of `images`.
            prefix_length: draw from the first k codes only; a number for all rows, or one per row.
            height, width: of the drawing in pixels; the decoder's own size if None.
            num_inference_steps: diffusion steps; the pipeline's setting if None.
            guidance_scale: diffusion guidance, against the empty prompt; 1 turns it off.
            num_images_per_prompt: drawings per row of codes.
            generator: one for the batch, or a list with one per drawing, which makes every drawing independent of the
                batch it is in.
            latents: initial noise, `(batch * num_images_per_prompt, channels, height / 8, width / 8)`.
            output_type: "pil", "np", "pt" or "latent".
            prompt: one or more captions, instead of `images`, from which the language model writes the codes.
            token_guidance_scale, token_temperature, generate_kwargs: see `generate_codes`.
            kwargs: further arguments of `StableDiffusionPipeline` (`callback_on_step_end`, `timesteps`, ...).

        Raises:
            ValueError, TypeError: not exactly one of images, codes and prompt, or an empty one; codes of another shape,
                dtype or range; a prompt without a language model; no images or no steps asked for; an argument that
                neither this pipeline nor `StableDiffusionPipeline` has.
        """
        self.check_inputs(images, codes, prompt, num_images_per_prompt, num_inference_steps, kwargs)
        if images is not None:
            codes = self.tokenize_images(images)
        elif prompt is not None:
            codes = self.generate_codes(
                prompt,
                num_images_per_prompt,
                token_guidance_scale,
                token_temperature,
                generator,
                **(generate_kwargs or {}),
            )
            num_images_per_prompt = 1  # every drawing has codes of its own
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale
        if num_inference_steps is None:
            num_inference_steps = self.config.num_inference_steps
        embeds = self.encode_codes(codes, prefix_length)
        negative = self.encode_empty_prompt().expand(len(embeds), -1, -1) if guidance_scale > 1 else None
        drawn = self._stable_diffusion()(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            output_type=output_type,
            **kwargs,
        )
        self.maybe_free_model_hooks()
        if not return_dict:
            return drawn.images, codes
        return SeedPipelineOutput(images=drawn.images, codes=codes)

    def _stable_diffusion(self) -> StableDiffusionPipeline:
        """diffusers' own pipeline around our components; it only holds references."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline


def load_language_model(
    name: str | Path, dtype: torch.dtype | str = "auto", **hub_options
) -> SeedOPTForCausalLM | SeedLlamaForCausalLM:
    """
    The language model of a SEED repository.

    Args:
        name: a local folder or a Hub id.
        hub_options: as in [`SeedPipeline.from_pretrained`].

    Raises:
        ValueError: the repository has none.
    """
    model_type = read_json(fetch(name, hub_options, ["*.json"]) / "config.json").get("model_type")
    if model_type not in _LANGUAGE_MODELS:
        raise ValueError(
            f"{str(name)!r} has no language model: its config.json is of type {model_type!r}, expected one of "
            f"{sorted(_LANGUAGE_MODELS)}. To caption, answer or draw from words, name a repository with SEED-OPT."
        )
    folder = fetch(name, hub_options, ["*.json", "model*.safetensors"])
    return _LANGUAGE_MODELS[model_type].from_pretrained(folder, dtype=dtype).eval()


@contextlib.contextmanager
def replacing_files(root: Path) -> Iterator[Path]:
    """
    A new folder inside `root` to save into, whose files, once all are written, take the places of those in `root`.

    So a save that fails changes nothing; and weights that are being saved may be mapped from the files they replace.
    Weights of an earlier save in other shards, or of another variant, go.
    """
    partial = root / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        files = sorted((path for path in partial.rglob("*") if path.is_file()), key=turn)
        for folder in {file.parent for file in files if is_weight(file)}:
            remove_weights(root / folder.relative_to(partial))
        for file in files:
            target = root / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _with_text_branch(model: SeedModel, folder: Path) -> SeedModel:
    """A copy of an image tokenizer, its text branch read from `folder`, where it was left out in loading."""
    config = copy.deepcopy(model.config)
    config.use_text_branch = True
    # What it may have been given since; like all that it has, it comes from the model.
    whole = SeedModel.from_pretrained(folder, config=config, dtype=model.dtype, new_modules="empty_prompt_embeds")
    whole.load_state_dict(model.state_dict(), strict=False)
    return whole


def _read_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """`dtype`, or the one of that name, which diffusers would not understand."""
    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; expected 'auto', 'float32', 'bfloat16', 'float16' or a torch.dtype.")
    return found


def _choosing_options(token_temperature: float | None, setting: float, generate_kwargs: dict) -> dict:
    """
    `generate`'s arguments, with those that say how a code is chosen where they do not say it themselves.

    Args:
        token_temperature: what the caller asks for; over it go `temperature` and `do_sample` of `generate_kwargs`.
        setting: the pipeline's, for a caller who asks for nothing.
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
    # Who samples at no temperature, by do_sample alone, chooses from all codes too, not from transformers' 50.
    return FROM_ALL_TOKENS | chosen if chosen["do_sample"] else chosen


@contextlib.contextmanager
def _seeded(generator: torch.Generator | list[torch.Generator] | None, device: torch.device):
    """
    transformers samples from the global generators; seeds them from ours, and restores them afterwards.

    Args:
        device: where the language model runs, and samples; the generator may be of another.
    """
    generator = generator[0] if isinstance(generator, list) else generator
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    # manual_seed seeds every device of the kind; those of another kind draw nothing here, and are left alone.
    kind = device.type if device.type != "cpu" else "cuda"
    devices = range(torch.get_device_module(kind).device_count()) if device.type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=kind):
        if devices:
            torch.manual_seed(int(seed))
        else:
            torch.random.default_generator.manual_seed(int(seed))
        yield


def _check_same_codebook(language_model, image_tokenizer: SeedModel) -> None:
    """Whether the language model was made for this codebook, up to rounding to the dtypes they are loaded in."""
    ours, theirs = language_model.visual_embeddings.codebook, image_tokenizer.quantizer.codebook.weight
    if ours.shape == theirs.shape:
        if ours.is_meta or theirs.is_meta:
            return
        ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
        if torch.linalg.vector_norm(ours - theirs) <= 0.02 * torch.linalg.vector_norm(theirs):
            return
    raise ValueError(
        f"The language model was made for another codebook ({tuple(ours.shape)}) than the image tokenizer's "
        f"({tuple(theirs.shape)}, other values): its codes would draw nonsense. Use the image tokenizer of the "
        "language model's repository."
    )


def load_complete(model_class, folder: Path, dtype: torch.dtype | str, variant: str | None = None):
    """
    A model of the decoder, as saved by diffusers, in the variant that is asked for or the only one that is there.

    Raises:
        FileNotFoundError: no such folder.
        OSError: no weights of that variant, or damaged ones.
        ValueError: a tensor is missing, which would be random weights; or the weights are pickled.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"The decoder has no folder {str(folder)!r}: download or copy it again.")
    weights = [path for path in folder.iterdir() if is_weight(path) and path.suffix == ".safetensors"]
    variants = {weight_variant(path) for path in weights}
    if variant is None and len(variants) == 1:
        (variant,) = variants
    if not weights and any(folder.glob("*.bin")):
        raise ValueError(
            f"The decoder's {folder.name} has pickled weights only ({next(folder.glob('*.bin')).name}), which are not "
            "loaded, as they may run code. Convert it: load it with diffusers' StableDiffusionPipeline, and save it "
            "with save_pretrained, which writes safetensors."
        )
    # The decoder may have another VAE than AutoencoderKL, e.g. AutoencoderTiny.
    named = getattr(diffusers, read_json(folder / "config.json").get("_class_name", ""), None)
    if isinstance(named, type) and issubclass(named, diffusers.ModelMixin):
        model_class = named
    try:
        model, info = model_class.from_pretrained(
            folder, dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True
        )
    except OSError as error:
        raise OSError(f"{error} The decoder is incomplete or damaged: download or copy it again.") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"The checkpoint {str(folder)!r} lacks {len(missing)} tensors of {model_class.__name__}, e.g. "
            f"{missing[:5]}: download or copy it again."
        )
    return model


__all__ = ["SeedPipeline", "SeedPipelineOutput", "load_complete", "load_language_model"]
