"""
Measure the training throughput of SEED-OPT with LoRA in useful tokens per second, for packed rows and for padding.

Both take the same examples in turn. Weights and ids are random; the time does not depend on them.

    python examples/benchmarks/benchmark_packing.py --model tiny --rounds 5
    python examples/benchmarks/benchmark_packing.py --model 125m --rounds 2 --threads 1
"""

import argparse
import json
import random
from pathlib import Path

import torch
from measuring import interleave, median_ratio, median_time

from seed.configuration_seed_language import SeedOPTConfig
from seed.modeling_seed_language import SeedOPTForCausalLM
from seed.training.language_examples import LoraRecipe
from seed.training.lora import add_lora
from seed.training.packing import PackingCollator, PaddingCollator

# These are width, layers, heads, codebook and text vocabulary; "tiny" has seed-tiny's.
SHAPES = {
    "toy": (32, 2, 4, 64, 300),
    "tiny": (256, 6, 4, 1024, 4480),
    "125m": (768, 12, 12, 8192, 50265),
}
PAD = 1
IMAGE = 34  # <img>, 32 codes, </img>


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="tiny")
    parser.add_argument(
        "--capacity", type=int, nargs=2, default=[128, 1024], help="tokens in a row: of captions, of documents"
    )
    parser.add_argument("--longest-document", type=int, default=512, help="its tokens; a row should hold two")
    parser.add_argument("--examples", type=int, nargs=2, default=[64, 16], help="captions and documents in a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's threads; 1 on a machine that others use too")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser.parse_args(argv)


def caption_lengths(count: int, rng: random.Random) -> list[int]:
    """Return lengths: an image, 4 tokens of prompt with SOS, a caption of 4 to 20 tokens (COCO has about 12), EOS."""
    return [IMAGE + 4 + min(20, max(4, round(rng.gauss(12, 3)))) + 1 for _ in range(count)]


def document_lengths(count: int, longest: int, rng: random.Random) -> list[int]:
    """Return lengths of documents with one to a dozen images and paragraphs, most of them short (log-uniform)."""
    shortest = 2 * IMAGE
    return [round(shortest * (longest / shortest) ** rng.random()) for _ in range(count)]


def make_examples(lengths: list[int], vocab_size: int, rng: random.Random) -> list[dict]:
    """Return examples: up to 100 tokens are a caption, with a loss on its last 13; more are a document."""
    examples = []
    for length in lengths:
        ids = [rng.randrange(3, vocab_size) for _ in range(length)]
        learnt = 13 if length <= 100 else length
        examples.append({"input_ids": ids, "labels": [-100] * (length - learnt) + ids[length - learnt :]})
    return examples


def build(arguments: argparse.Namespace):
    width, layers, heads, codebook_size, text_vocab_size = SHAPES[arguments.model]
    config = SeedOPTConfig(
        hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=2048, codebook_size=codebook_size,
        text_vocab_size=text_vocab_size, dropout=0.0,
    )  # fmt: skip
    return add_lora(SeedOPTForCausalLM(config), LoraRecipe(rank=16, alpha=32.0)).to(arguments.device).train()


def steps(model, examples: list[dict], capacity: int, device: str) -> dict:
    """Return a training step as a function, packed and padded, and the share of useful tokens in each."""
    useful = sum(len(example["input_ids"]) for example in examples)
    tasks, shares = {}, {}
    for name, collator in (("packed", PackingCollator(PAD, capacity)), ("padded", PaddingCollator(PAD))):
        batch = {key: value.to(device) for key, value in collator(examples).items()}
        shares[name] = useful / batch["input_ids"].numel()

        def step(batch=batch) -> None:
            model.zero_grad()
            model(**batch).loss.backward()

        tasks[name] = step
    return {"tasks": tasks, "shares": shares, "useful": useful}


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    model = build(arguments)
    lengths = {
        "captions": caption_lengths(arguments.examples[0], rng),
        "documents": document_lengths(arguments.examples[1], arguments.longest_document, rng),
    }
    figures = {"arguments": {key: str(value) for key, value in vars(arguments).items()}, "data": {}}
    for (name, drawn), capacity in zip(lengths.items(), arguments.capacity):
        work = steps(model, make_examples(drawn, model.config.vocab_size, rng), capacity, arguments.device)
        for task in work["tasks"].values():
            task()  # warm
        timings = interleave(work["tasks"], arguments.rounds, arguments.device)
        row = {"useful_share": work["shares"]}
        for clock in ("wall", "cpu"):
            row[clock] = {
                "useful_tokens_per_second": {key: work["useful"] / median_time(timings[key], clock) for key in timings},
                "packed_over_padded": median_ratio(timings["padded"], timings["packed"], clock),
            }
            speed = row[clock]["useful_tokens_per_second"]
            print(
                f"{name}, {arguments.model}, rows of {capacity}, {arguments.rounds} rounds, {clock} time: "
                f"{speed['packed']:.0f} useful tokens/s packed, {row[clock]['packed_over_padded']:.2f} times padded "
                f"({speed['padded']:.0f}); useful {work['shares']['packed']:.3f}, padded {work['shares']['padded']:.3f}"
            )
        figures["data"][name] = row
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
