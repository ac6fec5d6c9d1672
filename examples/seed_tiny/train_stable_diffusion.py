"""Train the Stable Diffusion stand-in of `seed-tiny`: AutoencoderKL, CLIP text encoder, UNet2DConditionModel.

    python examples/seed_tiny/train_stable_diffusion.py --recipe examples/recipes/stable_diffusion/tiny.yaml \
        --data train.parquet --validation val_concept.parquet val_style.parquet --output runs/sd

The `tiny` recipe takes about two hours on one CPU core with AVX512-BF16, without a GPU (see the recipe).
`OUTPUT/pipeline` is a stock Stable Diffusion repository: `StableDiffusionPipeline.from_pretrained` draws with it.

The data are image-text data as the other stages read them (`seed/data/image_text.py`). All pictures must be square and
of one size, and the first caption must be the name. There are four stages (`--stage`). Each of them needs the folders
that the stages before it left in OUTPUT:

vae      trains the VAE by L1, edge and colour reconstruction and a small KL term. Latents have an eighth of the
         picture's side, as in Stable Diffusion.
decoder  trains only the VAE's decoder, for longer. The encoder is frozen, so that this stage may run in a second
         process while `unet` trains.
text     trains a causal text encoder as CLIP does, against pooled features of a frozen, pretrained image network.
         Pictures of one name are positives of each other. A sentence encoder's embeddings of the same captions are a
         second target, because captions of two words alone leave most of the words' meaning to chance.
unet     trains the UNet by v-prediction on cached latents and text features. Some captions are dropped, for guidance.

Run the same command again to resume from the checkpoints in OUTPUT. A step's randomness depends only on the seed and
the step's number, so that a resumed run repeats the unbroken one.
"""

import argparse
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from makers.stable_diffusion.data import (
    CaptionTable,
    Pairs,
    cached,
    content_hash,
    image_features,
    load_pairs,
    sentence_features,
    to_model_range,
    train_tokenizer,
)
from makers.stable_diffusion.loop import fit, half, save_atomically
from makers.stable_diffusion.recipe import Recipe, TextRecipe, load_recipe
from makers.text_tokenizer import kept_tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from seed.hardware import keep_freed_memory
from seed.training.runs import loaded_hash, require_one_process, vocabulary_hash

logger = logging.getLogger("train_stable_diffusion")


# -------------------------------------------------------------------------------------------- stages: vae, decoder
def reconstruction_terms(target: Tensor, drawn: Tensor) -> dict[str, Tensor]:
    """Return the mean absolute differences of pixels, edges and colours, pictures being in [-1, 1]."""
    difference = drawn.float() - target
    edges = sum(torch.diff(difference, dim=dim).abs().mean() for dim in (2, 3))
    # These are opponent colours: brightness dominates a plain L1 loss, so that a small model learns hues last.
    red, green, blue = difference.unbind(1)
    chroma = ((red - green).abs() + ((red + green) / 2 - blue).abs()).mean() / 2
    return {"l1": difference.abs().mean(), "edge": edges, "chroma": chroma}


def weighted(terms: dict[str, Tensor], **weights: float) -> dict[str, Tensor]:
    """Return the terms and their weighted sum as `loss`; a term without a weight counts once."""
    return {"loss": sum(weights.get(key, 1.0) * term for key, term in terms.items()), **terms}


@torch.no_grad()
def log_reconstruction(name: str, step: int, vae: AutoencoderKL, validation: Pairs | None) -> None:
    if validation is not None:
        target = to_model_range(validation.images[:: max(1, len(validation.images) // 256)])
        terms = reconstruction_terms(target, vae.decode(vae.encode(target).latent_dist.mode()).sample)
        logger.info("%s step %d validation %s", name, step, " ".join(f"{k} {v:.4f}" for k, v in terms.items()))


def train_vae(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path) -> None:
    """Write `OUTPUT/vae`, with the `scaling_factor` measured on the training pictures."""
    stage = recipe.vae
    torch.manual_seed(recipe.seed)
    vae = AutoencoderKL(**stage.model, sample_size=train.images.shape[-1])

    def loss_terms(rows: Tensor) -> dict[str, Tensor]:
        target = to_model_range(train.images[rows])
        target = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, target.flip(-1), target)
        posterior = vae.encode(target).latent_dist
        terms = reconstruction_terms(target, vae.decode(posterior.sample()).sample)
        terms["kl"] = posterior.kl().mean() / target[0].numel()
        return weighted(terms, edge=stage.edge_weight, chroma=stage.chroma_weight, kl=stage.kl_weight)

    @torch.no_grad()
    def on_save(step: int) -> None:
        log_reconstruction("vae", step, vae, validation)
        latents = vae.encode(to_model_range(train.images[:: max(1, len(train.images) // 512)])).latent_dist.sample()
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
        logger.info("vae: scaling factor %.4f", vae.config.scaling_factor)
        save_atomically(half(vae).save_pretrained, output / "vae")

    fit("vae", vae, loss_terms, train, stage, output, recipe.seed, on_save)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each picture's scaled latents, (num, channels, side / 8, side / 8)."""
    posteriors = [vae.encode(to_model_range(batch)).latent_dist for batch in images.split(64)]
    moments = [torch.cat([getattr(posterior, name) for posterior in posteriors]) for name in ("mean", "std")]
    return tuple(moment * vae.config.scaling_factor for moment in moments)


def encoder_of(vae: AutoencoderKL) -> dict[str, str]:
    """Return the hash of the encoder, the part of the VAE that later stages take; the decoder may still be training."""
    return {"VAE's encoder": loaded_hash(nn.ModuleList([vae.encoder, vae.quant_conv]))}


def train_decoder(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path) -> None:
    """Continue to train the decoder of `OUTPUT/vae` with its encoder frozen, so that `unet` can train meanwhile."""
    stage = recipe.decoder
    vae = AutoencoderKL.from_pretrained(output / "vae", dtype=torch.float32)
    mean, std = encode_latents(vae, train.images)

    def loss_terms(rows: Tensor) -> dict[str, Tensor]:
        latents = (mean[rows] + std[rows] * torch.randn_like(std[rows])) / vae.config.scaling_factor
        terms = reconstruction_terms(to_model_range(train.images[rows]), vae.decode(latents).sample)
        return weighted(terms, edge=stage.edge_weight, chroma=stage.chroma_weight)

    def on_save(step: int) -> None:
        log_reconstruction("decoder", step, vae, validation)
        save_atomically(half(vae).save_pretrained, output / "vae")

    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    fit("decoder", decoder, loss_terms, train, stage, output, recipe.seed, on_save, encoder_of(vae))


# ----------------------------------------------------------------------------------------------------- stage: text
class ContrastiveText(nn.Module):
    """The text encoder with the heads that only its training needs."""

    def __init__(self, encoder: CLIPTextModel, image_width: int, sentence_width: int, recipe: TextRecipe):
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.text_head, self.image_head = nn.Linear(width, 256), nn.Linear(image_width, 256)
        self.sentence_head = nn.Linear(width, sentence_width) if sentence_width else None
        self.log_scale = nn.Parameter(torch.tensor(1 / recipe.temperature).log())
        self.feature_dropout = recipe.feature_dropout

    def forward(self, input_ids: Tensor, images: Tensor, names: Tensor, sentences: Tensor | None) -> dict[str, Tensor]:
        pooled = self.encoder(input_ids).pooler_output.float()
        images = F.dropout(images, self.feature_dropout, self.training)
        image = F.normalize(self.image_head(images).float(), dim=-1)
        text = F.normalize(self.text_head(pooled).float(), dim=-1)
        logits = self.log_scale.exp().clamp(max=100) * image @ text.T
        positives = (names.unsqueeze(1) == names.unsqueeze(0)).float()
        positives = positives / positives.sum(1, keepdim=True)
        contrastive = (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2
        terms = {"loss": contrastive, "contrastive": contrastive}
        if sentences is not None:
            terms["sentence"] = (1 - F.cosine_similarity(self.sentence_head(pooled).float(), sentences)).mean()
        return terms


def train_text(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path) -> None:
    """Write `OUTPUT/tokenizer` and `OUTPUT/text_encoder`."""
    stage = recipe.text
    captions = CaptionTable(train.captions)
    tokenizer = kept_tokenizer(output / "text_tokenizer", captions.unique, stage.vocab_size, train_tokenizer)
    images = cached(output / "cache.image_features.safetensors",
                    content_hash(train.images, stage.views, stage.view_size),
                    lambda: image_features(train.images, stage.views, stage.view_size))  # fmt: skip
    mean, std = images.mean((0, 1)), images.std((0, 1)) + 1e-3
    sentences = None
    if stage.sentence_package:
        sentences = cached(output / "cache.sentence_features.safetensors",
                           content_hash(captions.unique, stage.sentence_package),
                           lambda: sentence_features(captions.unique, stage.sentence_package))  # fmt: skip
    # Attention is causal: what follows the end of a caption never reaches its pooled feature, so batches are cropped.
    ids = tokenizer(captions.unique, padding="max_length", truncation=True, return_tensors="pt").input_ids
    lengths = (ids == tokenizer.eos_token_id).int().argmax(1) + 1
    config = CLIPTextConfig(**stage.model, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    torch.manual_seed(recipe.seed)
    sentence_width = 0 if sentences is None else sentences.shape[-1]
    model = ContrastiveText(CLIPTextModel(config), images.shape[-1], sentence_width, stage)

    def loss_terms(rows: Tensor) -> dict[str, Tensor]:
        views = torch.randint(images.shape[1], (len(rows),))
        picked = captions.pick(rows, name_probability=0.5)
        cropped = ids[picked, : lengths[picked].max()]
        targets = None if sentences is None else sentences[picked]
        terms = model(cropped, (images[rows, views] - mean) / std, captions.table[rows, 0], targets)
        if sentences is not None:
            terms["loss"] = terms["loss"] + stage.sentence_weight * terms["sentence"]
        return terms

    def on_save(step: int) -> None:
        fresh = CLIPTokenizer.from_pretrained(output / "text_tokenizer")  # a used one would save its last padding
        save_atomically(fresh.save_pretrained, output / "tokenizer")
        save_atomically(half(model.encoder).save_pretrained, output / "text_encoder")

    start_from = {"vocabulary": vocabulary_hash(tokenizer)}
    fit("text", model, loss_terms, train, stage, output, recipe.seed, on_save, start_from)


# ----------------------------------------------------------------------------------------------------- stage: unet
@torch.no_grad()
def encode_captions(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """Return features (num, 77, width) in bfloat16, padded as `StableDiffusionPipeline` pads."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return torch.cat([encoder(batch).last_hidden_state.bfloat16() for batch in ids.split(128)])


def train_unet(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path) -> None:
    """Write `OUTPUT/pipeline`: the stock Stable Diffusion repository, with the average of the UNet's weights.

    The decoder is read again at every export, since its stage may run beside this one.
    """
    stage = recipe.unet
    vae = AutoencoderKL.from_pretrained(output / "vae", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(output / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(output / "text_encoder", dtype=torch.float32).eval()
    scheduler = DDIMScheduler(**stage.scheduler)
    torch.manual_seed(recipe.seed)
    unet = UNet2DConditionModel(
        **stage.model,
        sample_size=train.images.shape[-1] // 8,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        cross_attention_dim=encoder.config.hidden_size,
    )
    unconditional = encode_captions(tokenizer, encoder, [""])
    signal = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    if scheduler.config.prediction_type != "v_prediction":
        raise ValueError(f"prediction_type must be 'v_prediction', got {scheduler.config.prediction_type!r}.")

    def denoising_loss(latents: Tensor, context: Tensor) -> Tensor:
        noise, steps = torch.randn_like(latents), torch.randint(len(signal), (len(latents),))
        noisy = scheduler.add_noise(latents, noise, steps)
        predicted = unet(noisy, steps, context).sample.float()
        target = scheduler.get_velocity(latents, noise, steps)
        # This is min-SNR weighting (Hang et al. 2023) of SNR + 1, the weight that v-prediction has anyway: nearly clean
        # latents count less, and the noisiest, where a caption decides what is drawn, keep their full weight.
        weights = (signal[steps] + 1).clamp(max=stage.snr_limit) / (signal[steps] + 1)
        return (weights * (predicted - target).square().mean((1, 2, 3))).mean()

    def prepare(pairs: Pairs) -> tuple[Tensor, Tensor, CaptionTable, Tensor]:
        captions = CaptionTable(pairs.captions)
        return *encode_latents(vae, pairs.images), captions, encode_captions(tokenizer, encoder, captions.unique)

    mean, std, captions, features = prepare(train)
    logger.info("unet: %d latents, %d captions, %d parameters", len(mean), len(features), unet.num_parameters())
    held_out = None if validation is None else prepare(validation)

    def loss_terms(rows: Tensor) -> dict[str, Tensor]:
        context = features[captions.pick(rows, stage.name_probability)].float()
        dropped = torch.rand(len(rows), 1, 1) < stage.caption_dropout
        context = torch.where(dropped, unconditional.float(), context)
        return {"loss": denoising_loss(mean[rows] + std[rows] * torch.randn_like(std[rows]), context)}

    @torch.no_grad()
    def on_save(step: int) -> None:
        if held_out is not None:
            torch.manual_seed(recipe.seed)  # every measurement sees the same noise
            held_mean, _, held_captions, held_features = held_out
            rows = torch.randperm(len(held_mean))[:512]
            loss = denoising_loss(held_mean[rows], held_features[held_captions.table[rows, 0]].float())
            logger.info("unet step %d validation loss %.4f", step, loss)
        pipeline = StableDiffusionPipeline(
            half(AutoencoderKL.from_pretrained(output / "vae")), half(encoder),
            CLIPTokenizer.from_pretrained(output / "tokenizer"),  # A used tokenizer would save its last padding.
            half(unet), scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        save_atomically(pipeline.save_pretrained, output / "pipeline")

    start_from = encoder_of(vae) | {"text encoder": loaded_hash(encoder), "vocabulary": vocabulary_hash(tokenizer)}
    fit("unet", unet, loss_terms, train, stage, output, recipe.seed, on_save, start_from)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", "--config", type=Path, required=True, help="YAML file of the recipe")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="training Parquet files")
    parser.add_argument("--validation", type=Path, nargs="*", default=[], help="Parquet files of held-out pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder for models and checkpoints")
    stages = ["all", "vae", "decoder", "text", "unet"]
    parser.add_argument("--stage", choices=stages, default="all", help="stage to train (default: all)")
    args = parser.parse_args(arguments)
    require_one_process()

    recipe = load_recipe(args.recipe)
    args.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True,
                        handlers=[logging.StreamHandler(), logging.FileHandler(args.output / "log.txt")])  # fmt: skip
    torch.set_num_threads(recipe.threads)
    keep_freed_memory()
    train = load_pairs(args.data)
    validation = load_pairs(args.validation) if args.validation else None
    for stage, run in {"vae": train_vae, "decoder": train_decoder, "text": train_text, "unet": train_unet}.items():
        if args.stage in ("all", stage):
            run(recipe, train, validation, args.output)


if __name__ == "__main__":
    main()
