"""The diffusers pipeline of SEED: images or codes in, images out, drawn by any Stable Diffusion 1.x UNet and VAE."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModel
from transformers.image_processing_utils import BaseImageProcessor

from .image_processing_seed import SeedImageProcessorPil
from .modeling_seed import SeedModel
from .repository_seed import (
    DECODER_FOLDER,
    IMAGE_TOKENIZER_FOLDER,
    fetch,
    read_settings,
    resolve_decoder,
    resolve_image_tokenizer,
    write_settings,
)


@dataclass
class SeedPipelineOutput(BaseOutput):
    """
    Args:
        images: list of PIL images, or `(batch, height, width, 3)` for `output_type="np"`.
        codes: `(batch, num_codes)`, from which they were drawn.
    """

    images: list[Image.Image] | np.ndarray
    codes: torch.LongTensor


class SeedPipeline(DiffusionPipeline):
    """
    Draws images from SEED codes (paper, section 3.2: the generation embeddings take the place of Stable Diffusion's
    text features).

    Args:
        image_tokenizer: [`SeedModel`].
        unet, vae, scheduler: of a Stable Diffusion 1.x model. Any scheduler that its pipeline takes may be set.
        image_processor: [`SeedImageProcessor`], for images.
        text_encoder, tokenizer: of the Stable Diffusion model; needed only where the image tokenizer does not hold the
            empty prompt's features.
        guidance_scale, num_inference_steps: what `__call__` uses if not told otherwise; saved with the pipeline.
    """

    model_cpu_offload_seq = "text_encoder->image_tokenizer->unet->vae"
    _optional_components = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        image_tokenizer: SeedModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: KarrasDiffusionSchedulers,
        image_processor: BaseImageProcessor,
        text_encoder: CLIPTextModel | None = None,
        tokenizer=None,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 50,
    ):
        super().__init__()
        generation_dim, wanted = image_tokenizer.config.generation_dim, unet.config.cross_attention_dim
        if generation_dim != wanted:
            raise ValueError(
                f"This UNet reads text features of width {wanted}, but the image tokenizer's generation embeddings "
                f"have width {generation_dim}: they were not trained for each other. Stable Diffusion 1.x has 768."
            )
        self.register_modules(
            image_tokenizer=image_tokenizer,
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            image_processor=image_processor,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(guidance_scale=guidance_scale, num_inference_steps=num_inference_steps)

    # Loading and saving ----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        decoder: str | Path | None = None,
        image_tokenizer: SeedModel | None = None,
        dtype: torch.dtype | str = "auto",
        **hub_options,
    ) -> "SeedPipeline":
        """
        Assembles the pipeline from a repository with the folders `image_tokenizer` and `decoder`, or with pointers to
        other repositories in their place. Only what is used is downloaded.

        Args:
            pretrained_model_name_or_path: a local folder or a Hub id; also the image tokenizer's own, if `decoder` is
                given.
            decoder: a Stable Diffusion 1.x repository or folder to use instead of the one that is named there.
            image_tokenizer: an already loaded [`SeedModel`], to share it.
            dtype: of all weights; "auto" takes each as it was saved. Codes that are stored or compared should be made
                in float32.
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only` for the Hub.

        Raises:
            FileNotFoundError, OSError: a folder or file is missing.
            ValueError: no decoder is named, or it does not fit the image tokenizer.
        """
        unknown = sorted(hub_options.keys() - {"revision", "token", "cache_dir", "local_files_only"})
        if unknown:
            raise TypeError(
                f"Unknown argument {unknown[0]!r}; see SeedPipeline.from_pretrained. For torch_dtype, say dtype."
            )
        settings = read_settings(fetch(pretrained_model_name_or_path, hub_options, ["*.json"]))
        tokenizer_folder = resolve_image_tokenizer(pretrained_model_name_or_path, **hub_options)
        if image_tokenizer is None:
            image_tokenizer = SeedModel.from_pretrained(tokenizer_folder, use_text_branch=False, dtype=dtype)
        image_tokenizer.eval()
        weights_dtype = image_tokenizer.dtype if dtype == "auto" else dtype

        text_parts = [] if image_tokenizer.config.has_empty_prompt_embeds else ["text_encoder/", "tokenizer/"]
        decoder_folder = resolve_decoder(
            pretrained_model_name_or_path, decoder, ("unet/", "vae/", "scheduler/", *text_parts), **hub_options
        )
        text = {}
        if text_parts:
            text["text_encoder"] = CLIPTextModel.from_pretrained(decoder_folder / "text_encoder", dtype=weights_dtype)
            text["tokenizer"] = AutoTokenizer.from_pretrained(decoder_folder / "tokenizer")
        stable_diffusion = StableDiffusionPipeline.from_pretrained(
            decoder_folder,
            unet=_load_complete(UNet2DConditionModel, decoder_folder / "unet", weights_dtype),
            vae=_load_complete(AutoencoderKL, decoder_folder / "vae", weights_dtype),
            text_encoder=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        return cls(
            image_tokenizer=image_tokenizer,
            unet=stable_diffusion.unet,
            vae=stable_diffusion.vae,
            scheduler=stable_diffusion.scheduler,
            image_processor=SeedImageProcessorPil.from_pretrained(tokenizer_folder),
            **text,
            **{key: settings[key] for key in ("guidance_scale", "num_inference_steps") if key in settings},
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """
        Saves the pipeline as a repository of the house: `image_tokenizer/`, `decoder/` (a stock Stable Diffusion
        repository) and `processor_config.json`.

        Args:
            kwargs: as of `DiffusionPipeline.save_pretrained`, applied to the decoder (`variant`, `max_shard_size`).
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("Save first, then push with pipeline.push_to_hub(repo_id).")
        root = Path(save_directory)
        self.image_tokenizer.save_pretrained(root / IMAGE_TOKENIZER_FOLDER)
        self.image_processor.save_pretrained(root / IMAGE_TOKENIZER_FOLDER)
        self._stable_diffusion().save_pretrained(root / DECODER_FOLDER, **kwargs)
        settings = read_settings(root) | {
            "image_tokenizer": IMAGE_TOKENIZER_FOLDER,
            "decoder": DECODER_FOLDER,
            "guidance_scale": self.config.guidance_scale,
            "num_inference_steps": self.config.num_inference_steps,
        }
        write_settings(root, settings)

    # Drawing ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def tokenize_images(self, images) -> torch.LongTensor:
        """
        Codes of images, `(batch, num_codes)`.

        Args:
            images: a PIL image, a path, an array or a tensor, or a list of them.
        """
        pixel_values = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return self.image_tokenizer.get_image_tokens(pixel_values.to(self._execution_device))

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
        if prefix_length is None or isinstance(prefix_length, int):
            # Through forward, where accelerate's offloading listens.
            outputs = self.image_tokenizer(codes=codes, prefix_length=prefix_length)
            return outputs.generation_embeddings.to(self.unet.dtype)
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
            embeds = self.image_tokenizer.empty_prompt_embeds
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

    def check_inputs(self, images, codes) -> None:
        if (images is None) == (codes is None):
            raise ValueError("Pass either images (to reconstruct) or codes (to draw).")
        if codes is not None and not isinstance(codes, torch.Tensor):
            raise TypeError(f"codes are a {type(codes).__name__}; expected an integer tensor (batch, num_codes).")

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
        **kwargs,
    ) -> SeedPipelineOutput | tuple:
        """
        Draws images from codes, or reconstructs images through their codes.

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
            kwargs: further arguments of `StableDiffusionPipeline` (`callback_on_step_end`, `timesteps`, ...).

        Raises:
            ValueError, TypeError: neither or both of images and codes; codes of another shape, dtype or range.
        """
        self.check_inputs(images, codes)
        if codes is None:
            codes = self.tokenize_images(images)
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale
        embeds = self.encode_codes(codes, prefix_length)
        negative = self.encode_empty_prompt().expand(len(embeds), -1, -1) if guidance_scale > 1 else None
        drawn = self._stable_diffusion()(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps or self.config.num_inference_steps,
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


def _load_complete(model_class, folder: Path, dtype: torch.dtype):
    """A model of diffusers; a tensor that its checkpoint lacks is an error, not a warning."""
    if not folder.is_dir():
        raise FileNotFoundError(f"The decoder has no folder {str(folder)!r}: download or copy it again.")
    try:
        model, info = model_class.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
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


__all__ = ["SeedPipeline", "SeedPipelineOutput", "resolve_decoder", "resolve_image_tokenizer"]
