"""From codes to pictures: generation embeddings, and the Stable Diffusion model that draws them, loaded and saved."""

import contextlib
import operator
import shutil
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from transformers import AutoTokenizer, CLIPTextModel
from transformers.utils import logging as transformers_logging

from .checkpoints_seed import own_tensor
from .files_seed import CONFIG_FILE, is_weight, read_json, write_json
from .modeling_seed import SeedModel
from .repository_seed import SeedRepository, weight_variant

with contextlib.ExitStack() as _afterwards:
    # diffusers imports image processors that SEED does not use, and because of them transformers would ask for
    # torchvision.
    _afterwards.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
    transformers_logging.set_verbosity_error()
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

_TEXT_PARTS = {"text_encoder": "text_encoder/", "tokenizer": "tokenizer/"}


# Codes to a picture --------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_codes(
    image_tokenizer: SeedModel,
    codes: torch.LongTensor,
    prefix_length: int | Sequence[int] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """
    Return the generation embeddings of codes, `(batch, 77, generation_dim)`.

    Args:
        codes: `(batch, num_codes)`.
        prefix_length: use the first k codes only; a number for all rows, or one per row.
        device: the device that the image tokenizer computes on; None takes its own.

    Raises:
        TypeError: a prefix length is not an integer.
        ValueError: there is not one prefix length per row, or a code or prefix length is out of range.
    """
    codes = codes.to(image_tokenizer.device if device is None else device)
    if isinstance(prefix_length, bool):
        raise TypeError(f"prefix_length is {prefix_length}; expected a number of codes, or one per row.")
    if prefix_length is None or not np.iterable(prefix_length):
        prefix_length = None if prefix_length is None else operator.index(prefix_length)
        # This calls forward, because accelerate's offloading hooks listen to it.
        return image_tokenizer(codes=codes, prefix_length=prefix_length).generation_embeddings
    prefix_length = [operator.index(length) for length in prefix_length]  # elements of a tensor cannot be keys
    if len(prefix_length) != len(codes):
        raise ValueError(f"Got {len(prefix_length)} prefix lengths for {len(codes)} rows of codes.")
    rows = {k: [row for row, length in enumerate(prefix_length) if length == k] for k in set(prefix_length)}
    embeds = torch.cat([encode_codes(image_tokenizer, codes[rows[k]], k, device) for k in rows])
    order = torch.tensor([row for k in rows for row in rows[k]], device=embeds.device)
    return embeds[order.argsort()]


@torch.no_grad()
def encode_empty_prompt(
    image_tokenizer: SeedModel, text_encoder=None, tokenizer=None, device: torch.device | None = None
) -> torch.Tensor:
    """
    Return the text features of the empty prompt, `(1, 77, generation_dim)`, against which diffusion is guided.

    They are stored with the image tokenizer, or the decoder's text encoder computes them.

    Raises:
        ValueError: the image tokenizer does not hold them, and there is no text encoder.
    """
    device = image_tokenizer.device if device is None else device
    if image_tokenizer.config.has_empty_prompt_embeds:
        return own_tensor(image_tokenizer, "empty_prompt_embeds").to(device)
    if text_encoder is None or tokenizer is None:
        raise ValueError(
            "Guidance needs the text features of the empty prompt, which this image tokenizer does not hold. Give the "
            "pipeline the decoder's text_encoder and tokenizer, call image_tokenizer.set_empty_prompt_embeds, or draw "
            "with guidance_scale=1."
        )
    length = image_tokenizer.config.reverse_qformer_config.num_queries
    inputs = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return text_encoder(inputs.input_ids.to(device)).last_hidden_state


@torch.no_grad()
def draw_codes(
    decoder: StableDiffusionPipeline,
    image_tokenizer: SeedModel,
    codes: torch.LongTensor,
    prefix_length: int | Sequence[int] | None = None,
    guidance_scale: float = 7.5,
    num_inference_steps: int = 50,
    device: torch.device | None = None,
    **kwargs,
) -> StableDiffusionPipelineOutput:
    """
    Draw images from codes, `(batch, num_codes)`.

    Args:
        decoder: the Stable Diffusion model, as [`load_decoder`] returns it.
        prefix_length, device: see [`encode_codes`].
        guidance_scale: the guidance scale of the diffusion, against the empty prompt; 1 turns guidance off.
        num_inference_steps: number of diffusion steps.
        kwargs: further arguments of `StableDiffusionPipeline` (`generator`, `output_type`, `height`, ...).

    Returns:
        diffusers' output, whose `images` are PIL images unless `output_type` says otherwise.
    """
    device = image_tokenizer.device if device is None else device
    embeds = encode_codes(image_tokenizer, codes, prefix_length, device).to(decoder.unet.dtype)
    negative = None
    if guidance_scale > 1:
        empty = encode_empty_prompt(image_tokenizer, decoder.text_encoder, decoder.tokenizer, device)
        negative = empty.to(device, decoder.unet.dtype).expand(len(embeds), -1, -1)
    return decoder(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        **kwargs,
    )


def check_decoder_fits(unet, image_tokenizer: SeedModel) -> None:
    """
    Check that the UNet reads text features of the generation embeddings' width.

    Raises:
        ValueError: the widths differ.
    """
    generation_dim, wanted = image_tokenizer.config.generation_dim, unet.config.cross_attention_dim
    if generation_dim != wanted:
        raise ValueError(
            f"This UNet reads text features of width {wanted}, but the image tokenizer's generation embeddings have "
            f"width {generation_dim}: they were not trained for each other. Stable Diffusion 1.x has 768."
        )


# Loading and saving --------------------------------------------------------------------------------------------------


def load_decoder(
    repository: SeedRepository,
    image_tokenizer: SeedModel,
    decoder: str | Path | None = None,
    dtype: torch.dtype | str = "auto",
    variant: str | None = None,
    unet=None,
    vae=None,
    scheduler=None,
) -> StableDiffusionPipeline:
    """
    Load the Stable Diffusion model that a SEED repository draws with, and its text encoder only if it is needed.

    Args:
        image_tokenizer: the image tokenizer whose codes are drawn. If it holds the empty prompt's features, no text
            encoder is loaded.
        decoder: another folder or Hub id, see [`SeedRepository.decoder_folder`].
        dtype: dtype of the weights.
        variant: variant of the weights, for example "fp16"; None takes a variant if there are no other weights.
        unet, vae, scheduler: loaded parts to use instead of the decoder's.

    Raises:
        FileNotFoundError, OSError: a folder or file is missing or damaged.
        ValueError: the weights are pickled or incomplete, or do not fit the image tokenizer.
    """
    needs_text = not image_tokenizer.config.has_empty_prompt_embeds
    parts = ("unet/", "vae/", "scheduler/", *(_TEXT_PARTS.values() if needs_text else ()))
    folder = repository.decoder_folder(decoder, parts, variant)
    text = {"text_encoder": None, "tokenizer": None}
    if needs_text:
        text["text_encoder"] = load_decoder_part(folder / "text_encoder", dtype, variant, CLIPTextModel)
        text["tokenizer"] = AutoTokenizer.from_pretrained(folder / "tokenizer")
    given = {} if scheduler is None else {"scheduler": scheduler}
    with _no_progress_bar():
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            unet=unet or load_decoder_part(folder / "unet", dtype, variant),
            vae=vae or load_decoder_part(folder / "vae", dtype, variant),
            **text,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **given,
        )
    check_decoder_fits(pipeline.unet, image_tokenizer)
    return pipeline


@contextlib.contextmanager
def _no_progress_bar():
    """Hide diffusers' bar over the parts of a pipeline, which are loaded before it starts."""
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()


def load_decoder_part(folder: Path, dtype: torch.dtype | str, variant: str | None = None, model_class=None):
    """
    Load a model of the decoder, in the given variant or in the only one that there is.

    Args:
        folder: a folder that diffusers or transformers saved the model to.
        model_class: class of the model. None takes the diffusers class that `config.json` names, because the decoder
            may have another VAE than `AutoencoderKL`, for example `AutoencoderTiny`. (`diffusers.AutoModel` does the
            same, but cannot report the tensors that a checkpoint lacks.)

    Raises:
        FileNotFoundError: the folder does not exist or has no `config.json`.
        OSError: there are no weights of that variant, or they are damaged.
        ValueError: a tensor is missing and would start at random, or the weights are pickled.
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
            "loaded, as they may run code. Convert it: load it with diffusers' StableDiffusionPipeline and save it "
            "with save_pretrained, which writes safetensors."
        )
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"The decoder's {str(folder)!r} has no {CONFIG_FILE}: download or copy it again.")
    if model_class is None:
        name = read_json(folder / CONFIG_FILE).get("_class_name", "")
        model_class = getattr(diffusers, name, None)
        if not (isinstance(model_class, type) and issubclass(model_class, diffusers.ModelMixin)):
            raise ValueError(f"{folder / CONFIG_FILE} names the class {name!r}; expected a model of diffusers.")
    try:
        model, info = model_class.from_pretrained(
            folder, dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True
        )
    except OSError as error:
        raise OSError(f"{error} The decoder is incomplete or damaged: download or copy it again.") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"The checkpoint {str(folder)!r} lacks {len(missing)} tensors of {type(model).__name__}, e.g. "
            f"{missing[:5]}: download or copy it again."
        )
    return model


def save_decoder(decoder: StableDiffusionPipeline, folder: Path, stored: Path | None, **kwargs) -> None:
    """
    Save a Stable Diffusion model as a stock repository.

    Args:
        stored: the folder that it was loaded from. If the text encoder and tokenizer were not loaded, they are taken
            from there. None takes nothing.
        kwargs: arguments of `DiffusionPipeline.save_pretrained` (`variant`, `max_shard_size`).
    """
    decoder.save_pretrained(folder, **kwargs)
    if stored is None:
        return
    index, copied = read_json(stored / "model_index.json"), {}
    for part in _TEXT_PARTS:
        if getattr(decoder, part) is not None or part not in index or not (stored / part).is_dir():
            continue
        if part == "text_encoder":  # it is saved again, because the variants may differ
            encoder = load_decoder_part(stored / part, "auto", model_class=CLIPTextModel)
            encoder.save_pretrained(folder / part, variant=kwargs.get("variant"))
        else:
            shutil.copytree(stored / part, folder / part)
        copied[part] = index[part]
    write_json(folder / "model_index.json", read_json(folder / "model_index.json") | copied)


__all__ = [
    "StableDiffusionPipeline",
    "check_decoder_fits",
    "draw_codes",
    "encode_codes",
    "encode_empty_prompt",
    "load_decoder",
    "load_decoder_part",
    "save_decoder",
]
