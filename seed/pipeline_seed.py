"""The diffusers pipeline of SEED: images, codes or words in, images out, drawn by any Stable Diffusion 1.x model."""

import copy
import inspect
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from PIL import Image
from transformers import CLIPTextModel, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_seed import SeedConfig
from .decoder_seed import (
    StableDiffusionPipeline,
    check_decoder_fits,
    draw_codes,
    encode_codes,
    encode_empty_prompt,
    load_decoder,
    save_decoder,
)
from .files_seed import replacing, write_json
from .generation_seed import write_codes
from .image_processing_seed import SeedImageProcessorPil, pixel_batches
from .modeling_seed import SeedModel
from .modeling_seed_language import load_language_model
from .processing_seed import SeedProcessor
from .repository_seed import DECODER_FOLDER, DECODER_PARTS, IMAGE_TOKENIZER_FOLDER, POINTER_FILE, SeedRepository

# The settings for drawing that a repository stores, in the file that the pipeline shares with SeedProcessor.
SETTINGS = ("guidance_scale", "num_inference_steps", "token_guidance_scale", "token_temperature")


@dataclass
class SeedPipelineOutput(BaseOutput):
    """
    The output of [`SeedPipeline`].

    Args:
        images: list of PIL images, or `(batch, height, width, 3)` for `output_type="np"`.
        codes: `(batch, num_codes)`, the codes that the images were drawn from.
    """

    images: list[Image.Image] | np.ndarray
    codes: torch.LongTensor


@dataclass(frozen=True)
class _Source:
    """
    Where `from_pretrained` found a pipeline's parts; `save_pretrained` takes the parts from there that were not loaded.

    Args:
        repository: the SEED repository.
        image_tokenizer: folder of the image tokenizer.
        decoder, variant: arguments of [`SeedRepository.decoder_folder`].
    """

    repository: SeedRepository
    image_tokenizer: Path
    decoder: str | Path | None
    variant: str | None


class SeedPipeline(DiffusionPipeline, StableDiffusionMixin):
    """
    A pipeline that draws images from SEED codes, and with a language model from words. The generation embeddings of the
    codes take the place of Stable Diffusion's text features (paper, section 3.2).

    The last four arguments are the defaults of `__call__`, and are saved with the pipeline.

    Args:
        image_tokenizer: a [`SeedModel`].
        unet, vae, scheduler: parts of a Stable Diffusion 1.x model. Any scheduler that its pipeline takes may be set.
        image_processor: the [`SeedImageProcessor`] of the image tokenizer.
        text_encoder, tokenizer: parts of the Stable Diffusion model, which are needed only if the image tokenizer does
            not hold the empty prompt's features.
        language_model, processor: [`SeedOPTForCausalLM`] or another SEED language model and its [`SeedProcessor`], to
            draw from prompts.
        guidance_scale: the guidance scale of the diffusion; 1 turns guidance off.
        num_inference_steps: number of diffusion steps.
        token_guidance_scale: the guidance scale of the language model; 1 turns guidance off.
        token_temperature: temperature at which codes are sampled; 0 takes the likeliest code each time.

    Raises:
        ValueError: the parts were not made for each other.

    Example:

    ```python
    import torch

    import seed

    pipeline = seed.SeedPipeline.from_pretrained(seed.default_model(), language_model=True)
    drawn = pipeline(prompt="a red apple", num_inference_steps=10, generator=torch.Generator().manual_seed(0))
    again = pipeline(images=drawn.images, num_inference_steps=10)  # reconstruct them through their codes
    coarse = pipeline(codes=again.codes, prefix_length=4, num_inference_steps=10)  # from the first four codes only
    ```
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
        check_decoder_fits(unet, image_tokenizer)
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
        Assemble the pipeline from a repository with the folders `image_tokenizer` and `decoder`, or with pointers to
        other repositories in their place. Only the parts that are used are downloaded.

        Args:
            pretrained_model_name_or_path: a local folder or a Hub id. If `decoder` is given, the image tokenizer's own
                repository is enough.
            decoder: a Stable Diffusion 1.x repository or folder to use instead of the one that the repository names. A
                local folder comes before a folder of the same name in the repository.
            image_tokenizer: a loaded [`SeedModel`] to share.
            language_model: True loads the repository's language model and processor; a loaded language model is shared.
            processor: a loaded [`SeedProcessor`] to share.
            dtype: dtype of all weights; "auto" takes the one in which the image tokenizer was saved. Codes that are
                stored or compared should be made in float32.
            variant: variant of the decoder's weights, for example "fp16"; None takes a variant if there are no other
                weights.
            unet, vae, scheduler: loaded parts to use instead of the decoder's.
            torch_dtype: `dtype` by its older name.
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only` for the Hub.

        Raises:
            FileNotFoundError, OSError: a folder or file is missing.
            ValueError: no decoder is named, or it does not fit the image tokenizer.
        """
        dtype = _read_dtype(dtype if torch_dtype is None else torch_dtype)
        repository = SeedRepository(pretrained_model_name_or_path, **hub_options)
        tokenizer_folder = repository.image_tokenizer_folder()
        if image_tokenizer is None:
            image_tokenizer = SeedModel.from_pretrained(tokenizer_folder, use_text_branch=False, dtype=dtype)
        image_tokenizer.eval()
        weights_dtype = image_tokenizer.dtype if dtype == "auto" else dtype
        stable_diffusion = load_decoder(
            repository, image_tokenizer, decoder, weights_dtype, variant, unet=unet, vae=vae, scheduler=scheduler
        )
        if language_model is True:
            language_model = load_language_model(repository, dtype=dtype)
        if language_model and processor is None:
            processor = SeedProcessor.from_pretrained(pretrained_model_name_or_path, **hub_options)
        settings = repository.settings()
        pipeline = cls(
            image_tokenizer=image_tokenizer,
            unet=stable_diffusion.unet,
            vae=stable_diffusion.vae,
            scheduler=stable_diffusion.scheduler,
            image_processor=SeedImageProcessorPil.from_pretrained(tokenizer_folder),
            text_encoder=stable_diffusion.text_encoder,
            tokenizer=stable_diffusion.tokenizer,
            language_model=language_model or None,
            processor=processor if language_model else None,
            **{key: settings[key] for key in SETTINGS if key in settings},
        )
        if decoder and Path(decoder).is_dir():
            decoder = Path(decoder).absolute()
        pipeline._source = _Source(repository, tokenizer_folder.absolute(), decoder, variant)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """
        Save the pipeline as a SEED repository: `image_tokenizer/`, `decoder/` (a stock Stable Diffusion repository) and
        `processor_config.json`. A language model and its processor are saved at the top.

        Parts that `from_pretrained` did not load are copied from where it loaded the others: the image tokenizer's text
        branch, text tokenizer and captions (unless the pipeline has been given another image tokenizer), and the
        decoder's text encoder and tokenizer. `save_directory` may be the folder that the pipeline was loaded from.

        Args:
            kwargs: arguments of `DiffusionPipeline.save_pretrained` for the decoder (`variant`, `max_shard_size`).

        Raises:
            ValueError: the language model was trained with an image tokenizer of other weights or precision, or
                `push_to_hub` or pickled weights are asked for.
            FileNotFoundError, OSError: a part that was not loaded is no longer there.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("push_to_hub is True; save first, and then push with pipeline.push_to_hub(repo_id).")
        if not kwargs.get("safe_serialization", True):
            raise ValueError("safe_serialization is False; weights are saved as safetensors only.")
        root = Path(save_directory)
        self.check_image_tokenizer_hash(root)
        with replacing(root) as partial:
            self._save_image_tokenizer(partial / IMAGE_TOKENIZER_FOLDER)
            self._save_decoder(partial / DECODER_FOLDER, **kwargs)
            if self.language_model is not None:
                self.language_model.save_pretrained(partial)
        if self.processor is not None:
            self.processor.save_pretrained(root)
        settings = SeedRepository(root).settings() | {
            "image_tokenizer": IMAGE_TOKENIZER_FOLDER,
            "decoder": DECODER_FOLDER,
            **{key: self.config[key] for key in SETTINGS},
        }
        write_json(root / POINTER_FILE, settings)

    def check_image_tokenizer_hash(self, root: str | Path) -> None:
        """
        Check that the image tokenizer, as it would be saved, makes the codes that the language model was trained with.

        Args:
            root: the folder to save to. If the pipeline was loaded from there without the language model, that language
                model is checked.

        Raises:
            ValueError: the image tokenizer makes other codes.
        """
        if self.language_model is not None:
            trained = self.language_model.config.image_tokenizer_hash or self.processor.image_tokenizer_hash
        elif self._source and Path(self._source.repository.name).resolve() == Path(root).resolve():
            trained = self._source.repository.settings().get("image_tokenizer_hash")
        else:
            trained = None
        if trained is not None and (own := self.image_tokenizer.codes_hash()) != trained:
            raise ValueError(
                f"The image tokenizer's weights, in {self.image_tokenizer.dtype}, have the hash {own[:12]}..., but the "
                f"language model beside which they would be saved was trained with {trained[:12]}...: that repository "
                "would refuse to read pictures. Load the pipeline in the dtype that the image tokenizer was stored in, "
                "SeedPipeline.from_pretrained(..., dtype='auto') (pipeline('text-to-image') takes it as decoder=), and "
                "save that. Or save to another folder, without the language model."
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
        stored = None
        if self._source and (self.text_encoder is None or self.tokenizer is None):
            source = self._source
            absent = tuple(part for part in DECODER_PARTS if part in ("text_encoder/", "tokenizer/"))
            stored = source.repository.decoder_folder(source.decoder, absent, source.variant)
        save_decoder(self._stable_diffusion(), folder, stored, **kwargs)

    # Drawing ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tokenize_images(self, images) -> torch.LongTensor:
        """
        Return the codes of images, `(batch, num_codes)`.

        Args:
            images: a PIL image, a path, an array or a tensor, or a list of them. Floats lie in 0 .. 1, as diffusers
                returns them for "np" and "pt".
        """
        # accelerate's offloading hooks listen to forward, which would also decode the codes. This runs the hooks only.
        tokenize = apply_forward_hook(lambda model, *args: model.get_image_tokens(*args))
        codes = [
            tokenize(self.image_tokenizer, pixel_values.to(self._execution_device))
            for pixel_values in pixel_batches(self.image_processor, images)
        ]
        return torch.cat(codes)

    @torch.no_grad()
    def encode_codes(self, codes: torch.LongTensor, prefix_length: int | Sequence[int] | None = None) -> torch.Tensor:
        """
        Return the generation embeddings of codes, `(batch, 77, generation_dim)`, in the UNet's dtype. Any Stable
        Diffusion 1.x pipeline (img2img, ControlNet, GLIGEN, ...) takes them as `prompt_embeds`.

        Args:
            codes: `(batch, num_codes)`.
            prefix_length: use the first k codes only; a number for all rows, or one per row.
        """
        return encode_codes(self.image_tokenizer, codes, prefix_length, self._execution_device).to(self.unet.dtype)

    @torch.no_grad()
    def encode_empty_prompt(self) -> torch.Tensor:
        """
        Return the text features of the empty prompt, `(1, 77, generation_dim)`, which guidance takes as
        `negative_prompt_embeds`.
        """
        embeds = encode_empty_prompt(self.image_tokenizer, self.text_encoder, self.tokenizer, self._execution_device)
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
        Write the codes of drawings with the language model, `(batch * num_images_per_prompt, num_codes)`.

        The arguments are those of [`write_codes`]; None takes the pipeline's settings.

        Raises:
            ValueError: there is no language model, or [`write_codes`] refuses an argument.
        """
        if self.language_model is None:
            raise ValueError(
                "Drawing from a prompt needs a language model: load the pipeline with "
                "SeedPipeline.from_pretrained(..., language_model=True) from a repository that has one."
            )
        settings = {"token_guidance_scale": token_guidance_scale, "token_temperature": token_temperature}
        settings = {name: self.config[name] if value is None else value for name, value in settings.items()}
        return write_codes(
            self.language_model,
            self.processor,
            prompt,
            num_images_per_prompt,
            generator=generator,
            device=self._execution_device,
            **settings,
            **generate_kwargs,
        )

    def check_inputs(
        self, images, codes, prompt, num_images_per_prompt: int = 1, num_inference_steps: int | None = None, options=()
    ) -> None:
        """Raise an error for arguments that `__call__` would misread or ignore."""
        if [images is None, codes is None, prompt is None].count(False) != 1:
            raise ValueError("Pass either images (to reconstruct), or codes, or a prompt (to draw).")
        counts = {"num_images_per_prompt": num_images_per_prompt, "num_inference_steps": num_inference_steps}
        for name, given in counts.items():
            if given is not None and given < 1:
                raise ValueError(f"{name} is {given}; expected 1 or more.")
        # diffusers' pipeline ignores unknown arguments in silence.
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
        Draw images from codes or from words, or reconstruct images through their codes. Exactly one of `images`,
        `codes` and `prompt` is given.

        Args:
            images: a PIL image, a path, an array or a tensor, or a list of them, which are tokenised first.
            codes: `(batch, num_codes)`.
            prefix_length: draw from the first k codes only; a number for all rows, or one per row.
            height, width: size of the drawing in pixels; None takes the decoder's own size.
            num_inference_steps: number of diffusion steps; None takes the pipeline's setting.
            guidance_scale: the guidance scale of the diffusion, against the empty prompt; 1 turns guidance off, and
                None takes the pipeline's setting.
            num_images_per_prompt: drawings per row of codes, or per prompt.
            generator: one for the batch, or a list with one per drawing, which makes every drawing independent of the
                batch it is in.
            latents: initial noise, `(batch * num_images_per_prompt, channels, height / 8, width / 8)`.
            output_type: "pil", "np", "pt" or "latent".
            prompt: one or more captions, from which the language model writes the codes.
            token_guidance_scale, token_temperature, generate_kwargs: see `generate_codes`.
            kwargs: further arguments of `StableDiffusionPipeline` (`callback_on_step_end`, `timesteps`, ...).

        Raises:
            TypeError: the codes are not integers, or neither this pipeline nor `StableDiffusionPipeline` has an
                argument of that name.
            ValueError: not exactly one of images, codes and prompt is given, the codes have another shape or range,
                there is no language model for a prompt, or a number of images or steps is below 1.
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
        drawn = draw_codes(
            self._stable_diffusion(),
            self.image_tokenizer,
            codes,
            prefix_length,
            guidance_scale,
            num_inference_steps,
            device=self._execution_device,
            height=height,
            width=width,
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
        """Return diffusers' own pipeline around our components, which it refers to and does not copy."""
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


def _with_text_branch(model: SeedModel, folder: Path) -> SeedModel:
    """Return a copy of an image tokenizer that was loaded without its text branch, with the one in `folder`."""
    config = copy.deepcopy(model.config)
    config.use_text_branch = True
    # The model may have been given the empty prompt's features since. They come from it, like all its other tensors.
    whole = SeedModel.from_pretrained(folder, config=config, dtype=model.dtype, new_modules="empty_prompt_embeds")
    whole.load_state_dict(model.state_dict(), strict=False)
    return whole


def _read_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """Return the dtype of that name, as diffusers does not understand names."""
    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; expected 'auto', 'float32', 'bfloat16', 'float16' or a torch.dtype.")
    return found


def _check_same_codebook(language_model, image_tokenizer: SeedModel) -> None:
    """Check that the language model was made for this codebook, up to rounding to the dtypes they are loaded in."""
    ours, theirs = language_model.visual_embeddings.codebook, image_tokenizer.quantizer.codebook.weight
    if ours.shape == theirs.shape:
        if ours.is_meta or theirs.is_meta:
            return
        ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
        if torch.linalg.vector_norm(ours - theirs) <= 0.02 * torch.linalg.vector_norm(theirs):
            return
    raise ValueError(
        f"The language model was made for another codebook ({tuple(ours.shape)}) than the image tokenizer's "
        f"({tuple(theirs.shape)}, other values), so that its codes would draw nonsense. Use the image tokenizer of the "
        "language model's repository."
    )


__all__ = ["SeedPipeline", "SeedPipelineOutput"]
