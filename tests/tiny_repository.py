"""A whole SEED repository, image tokenizer and Stable Diffusion decoder, with random weights, for any test to use."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from makers.text_tokenizer import train_text_tokenizer
from PIL import Image
from tiny_models import make_tiny_seed_config
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from seed import SeedImageProcessorPil, SeedModel, SeedPipeline

CAPTIONS = ["red square", "blue circle", "green triangle", "a dog", "a cat"]
SIZE = 16  # of the drawings, in pixels


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Pictures of different sizes that look different even to a random model: blurred noise of strong colours."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        blocks = Image.fromarray(random.choice([0, 255], (2, 2, 3)).astype(np.uint8))
        made.append(blocks.resize((20 + number % 7, 30), Image.Resampling.NEAREST))
    return made


def make_seed_model(**config) -> SeedModel:
    """A tiny `SeedModel` whose codes depend on the picture."""
    torch.manual_seed(0)
    vision = {"initializer_range": 0.3}
    model = SeedModel(make_tiny_seed_config(initializer_range=0.2, vision_config=vision, **config)).eval()
    pixels = SeedImageProcessorPil(size={"height": 28, "width": 28})(pictures(32, seed=1), return_tensors="pt")
    with torch.no_grad():
        embeddings = model.get_causal_embeddings(pixels["pixel_values"])
        model.encode_layer[2].weight *= 3 / model.encode_layer(embeddings).std()  # so that codes differ in effect
        vectors = model.encode_layer(embeddings)
        model.quantizer.initialize_from_data(vectors, generator=torch.Generator().manual_seed(0))
    return model


def make_stable_diffusion(width: int = 40) -> StableDiffusionPipeline:
    """A tiny Stable Diffusion model, text encoder included, whose text features have `width` dimensions."""
    torch.manual_seed(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 77
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_seed_pipeline(**settings) -> SeedPipeline:
    """A tiny pipeline that holds the empty prompt's features and no text encoder."""
    model, decoder = make_seed_model(), make_stable_diffusion()
    model.set_empty_prompt_embeds(torch.randn(1, 77, 40, generator=torch.Generator().manual_seed(2)))
    return SeedPipeline(
        image_tokenizer=model,
        unet=decoder.unet,
        vae=decoder.vae,
        scheduler=decoder.scheduler,
        image_processor=SeedImageProcessorPil(size={"height": 28, "width": 28}),
        **({"guidance_scale": 3.0, "num_inference_steps": 2} | settings),
    )


def make_seed_repository(folder) -> None:
    """What the Hub would hold: `image_tokenizer/` with text tokenizer and captions, `decoder/`, settings."""
    text_tokenizer = train_text_tokenizer(CAPTIONS, 100)
    pipeline = make_seed_pipeline()
    pipeline.save_pretrained(folder)
    text_tokenizer.save_pretrained(folder / "image_tokenizer")
    (folder / "image_tokenizer" / "captions.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
