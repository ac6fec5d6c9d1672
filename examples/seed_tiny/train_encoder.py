"""Pretrain seed-tiny's image encoder on pictures and captions, contrastively: the stand-in of the paper's EVA-CLIP.

    python examples/seed_tiny/save_encoder.py --size 192 --output runs/imagenet_encoder
    python examples/seed_tiny/train_text_tokenizer.py --data data/emoji64/train.parquet \
        --data data/emoji64/icons.parquet --data data/emoji64/clip_art.parquet --output runs/text_tokenizer
    python examples/seed_tiny/train_encoder.py --recipe examples/recipes/encoder/tiny.yaml \
        --encoder runs/imagenet_encoder --text-tokenizer runs/text_tokenizer --data data/emoji64/train.parquet \
        --data data/emoji64/icons.parquet --data data/emoji64/clip_art.parquet --output runs/encoder

EfficientNet-Lite0 starts from its ImageNet weights. Pictures are contrasted with their captions, which a transformer
reads, and with a picture of the same concept in another drawing style. Run it again with the same arguments to resume.

The output folder holds the encoder for `AutoModel` with its preprocessing, which examples/train_qformer.py takes as
--vision-model, and in text_branch/ the transformer: it is the text branch of a Q-Former, with which that can go on.
"""

import argparse
import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from makers.encoder.data import ConceptSteps, load_pictures
from makers.encoder.model import ContrastiveEncoder, parameter_groups, save_text_branch
from makers.encoder.recipe import EncoderRecipe, load_encoder_recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

from seed import SeedImageProcessorPil
from seed.files_seed import replacing, replacing_file
from seed.hardware import has_fast_bfloat16, keep_freed_memory
from seed.training.runs import file_hash, loaded_hash, require_one_process, vocabulary_hash

logger = logging.getLogger("train_encoder")

CHECKPOINT = "checkpoint.safetensors"
SNAPSHOT = "snapshot"  # The models of the last checkpoint, to measure a run on its way.


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    require_one_process()
    keep_freed_memory()
    recipe = load_encoder_recipe(args.recipe)
    recipe.steps = args.max_steps or recipe.steps
    tokenizer = AutoTokenizer.from_pretrained(args.text_tokenizer)
    processor = SeedImageProcessorPil.from_pretrained(args.encoder)
    encoder = AutoModel.from_pretrained(args.encoder, dtype=torch.float32)
    run = dataclasses.asdict(recipe) | {
        "encoder": loaded_hash(encoder),
        "text vocabulary": vocabulary_hash(tokenizer),
        "data": [file_hash(path) for path in args.data],
    }
    steps = ConceptSteps([load_pictures(path) for path in args.data], recipe)
    torch.manual_seed(recipe.seed)  # The new weights are the same in every run.
    model = ContrastiveEncoder(encoder, recipe, len(tokenizer))
    logger.info("concepts of each file: %s", [len(names) for names in steps.names])
    args.output.mkdir(parents=True, exist_ok=True)
    train(model, steps, tokenizer, processor, run, args)
    save(model, tokenizer, processor, args.output, args.recipe)
    shutil.rmtree(args.output / SNAPSHOT, ignore_errors=True)
    print(f"Saved to {args.output}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, type=Path, help="YAML file, see examples/recipes/encoder")
    parser.add_argument("--encoder", required=True, help="folder that save_encoder.py wrote")
    parser.add_argument("--text-tokenizer", required=True, help="folder that train_text_tokenizer.py wrote")
    parser.add_argument("--data", required=True, action="append", help="image-text table; may be repeated")
    parser.add_argument("--output", required=True, type=Path, help="folder for the encoder and its checkpoint")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches; more of them for a GPU")
    parser.add_argument("--max-steps", type=int, help="length of the run, instead of the recipe's")
    return parser.parse_args()


def train(model: ContrastiveEncoder, steps: ConceptSteps, tokenizer, processor, run: dict, args) -> None:
    """
    Train to the recipe's last step, from the checkpoint in the output folder if there is one.

    Args:
        run: what makes the run what it is; a checkpoint of another run is refused.

    Raises:
        ValueError: the checkpoint is of another run.
        FloatingPointError: a loss is not finite; the last checkpoint is kept.
    """
    recipe: EncoderRecipe = model.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), betas=(0.9, 0.98))
    start = resume(model, optimizer, run, args.output)
    # Pixels in 0 .. 1 are normalised on the accelerator; bytes are a quarter of what would have to go there else.
    mean = torch.tensor(processor.image_mean, device=device).view(3, 1, 1)
    deviation = torch.tensor(processor.image_std, device=device).view(3, 1, 1)
    bfloat16 = device.type == "cuda" and has_fast_bfloat16()  # on CPUs it would slow the gradients of convolutions
    sums, counted, pictures, since, saved = {}, 0, 0, time.time(), time.time()
    loader = DataLoader(steps, batch_size=None, sampler=range(start, recipe.steps), num_workers=args.workers)
    for step, batch in enumerate(loader, start):
        torch.manual_seed(recipe.seed + 1_000_003 * (step + 1))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_at(step, recipe)
        pixels = batch["images"].to(device).permute(0, 3, 1, 2).float() / 255
        words = tokenizer(
            batch["captions"],
            padding=True,
            truncation=True,
            max_length=recipe.max_text_length,
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            terms = model((pixels - mean) / deviation, **words, groups=batch["groups"].to(device))
        if not torch.isfinite(terms["loss"]):
            raise FloatingPointError(f"The loss is {terms['loss']} at step {step + 1}; lower the learning rates.")
        optimizer.zero_grad()
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(trained(model), recipe.max_grad_norm)
        optimizer.step()
        sums = {name: sums.get(name, 0.0) + float(value.detach()) for name, value in terms.items()}
        counted, pictures = counted + 1, pictures + len(pixels)
        last = step + 1 == recipe.steps
        if (step + 1) % recipe.logging_steps == 0 or last:
            entry = {"step": step + 1} | {name: round(value / counted, 4) for name, value in sums.items()}
            entry["pictures_per_second"] = round(pictures / (time.time() - since), 1)
            logger.info("%s of %s: %s", step + 1, recipe.steps, json.dumps(entry))
            with open(args.output / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            sums, counted, pictures, since = {}, 0, 0, time.time()
        if last or time.time() - saved > 60 * recipe.save_minutes:
            checkpoint(model, optimizer, run, step + 1, args.output)
            save(model, tokenizer, processor, args.output / SNAPSHOT, args.recipe)
            saved = time.time()


def trained(model: nn.Module) -> Iterator[nn.Parameter]:
    """Give the parameters that are trained."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def rate_at(step: int, recipe: EncoderRecipe) -> float:
    """Return the share of the learning rates at a step: a linear warm-up, then a cosine to zero."""
    warmup = (step + 1) / max(1, recipe.warmup_steps)
    return min(1.0, warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, run: dict, step: int, output: Path) -> None:
    """Write the whole state of the run to one file, under a temporary name first."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{slot}": tensor for slot, tensor in slots.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing_file(output / CHECKPOINT) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "run": json.dumps(run)})


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, run: dict, output: Path) -> int:
    """
    Return the step from which the run goes on, with model and optimizer as they were there; 0 without a checkpoint.

    Raises:
        ValueError: the checkpoint is of another run; the message names what differs.
    """
    path = output / CHECKPOINT
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        step, stored = int(file.metadata()["step"]), json.loads(file.metadata()["run"])
    run = json.loads(json.dumps(run))  # as the file holds it
    free = {"save_minutes", "logging_steps"}
    differing = sorted(key for key in (run.keys() | stored.keys()) - free if run.get(key) != stored.get(key))
    if differing:
        raise ValueError(
            f"{path} is of another run: it differs in {', '.join(differing)}. Repeat that run's command to go on with "
            f"it; for another run choose another --output, or delete {path}."
        )
    weights, state = {}, optimizer.state_dict()
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition(".")
        if part == "model":
            weights[rest] = tensor
        else:
            number, _, slot = rest.partition(".")
            state["state"].setdefault(int(number), {})[slot] = tensor
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    logger.info("going on from step %d", step)
    return step


def save(model: ContrastiveEncoder, tokenizer, processor, output: Path, recipe_path: Path) -> None:
    """Save the encoder, its preprocessing and the recipe in `output`, and in text_branch/ the text branch."""
    with replacing(output) as partial:
        model.vision.encoder.save_pretrained(partial)
        processor.save_pretrained(partial)
        shutil.copy(recipe_path, partial / "recipe.yaml")
        save_text_branch(model, partial / "text_branch")
        tokenizer.save_pretrained(partial / "text_branch")


if __name__ == "__main__":
    main()
