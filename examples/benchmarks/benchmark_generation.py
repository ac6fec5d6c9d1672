"""
Measure how many tokens per second SEED-OPT writes in image mode, beside stock `OPTForCausalLM.generate`.

Both have the same vocabulary, layers and batch, and run in turn. Weights are random; the time does not depend on them.

    python examples/benchmarks/benchmark_generation.py --model 125m --batch-sizes 1 8 --rounds 5     # 2 CPU minutes
    python examples/benchmarks/benchmark_generation.py --model 2.7b --dtype bfloat16 --batch-sizes 1 --rounds 2
    python examples/benchmarks/benchmark_generation.py --model toy --rounds 1
"""

import argparse
import json
from pathlib import Path

import torch
from measuring import Matmul, interleave, median_ratio, median_time
from transformers import OPTConfig, OPTForCausalLM

from seed.configuration_seed_language import SeedOPTConfig
from seed.modeling_seed_language import SeedOPTForCausalLM

# OPT's published shapes: width, layers, heads.
SHAPES = {"toy": (32, 2, 4), "125m": (768, 12, 12), "2.7b": (2560, 32, 32)}
PROMPT_LENGTH = 16
IMAGE_TOKENS = 33  # 32 codes and </img>


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="125m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", action="store_true", help="sample instead of taking the likeliest token")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's threads; 1 on a machine that others use too")
    parser.add_argument("--matmul-size", type=int, default=2048)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> tuple[SeedOPTForCausalLM, OPTForCausalLM]:
    """Return SEED-OPT, and a stock OPT of the same shape whose two tables hold the whole vocabulary."""
    width, layers, heads = SHAPES[arguments.model]
    shape = {
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
    }
    dtype = getattr(torch, arguments.dtype)
    config = SeedOPTConfig(**shape, text_embedding_rows=50272)
    with torch.device("meta"):
        models = SeedOPTForCausalLM(config), OPTForCausalLM(OPTConfig(**shape, vocab_size=config.vocab_size))
    for model in models:
        model.to(dtype).to_empty(device=arguments.device)
        model.tie_weights()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        model.eval()
    torch.nn.init.normal_(models[0].visual_embeddings.codebook)
    return models


def generators(models, batch_size: int, arguments: argparse.Namespace) -> dict:
    """Return a function for each model that writes one image for each prompt of a batch."""
    ours, stock = models
    first = ours.config.boi_token_id
    prompt = torch.randint(3, first, (batch_size, PROMPT_LENGTH), device=arguments.device)
    prompt[:, -1] = first
    sampling = {"do_sample": arguments.sample}

    def seed_opt():
        written = ours.generate(prompt, generation_mode="image", **sampling)
        assert written.shape[1] == PROMPT_LENGTH + IMAGE_TOKENS

    def stock_opt():
        limits = {"min_new_tokens": IMAGE_TOKENS, "max_new_tokens": IMAGE_TOKENS}
        written = stock.generate(prompt, **limits, **sampling)
        assert written.shape[1] == PROMPT_LENGTH + IMAGE_TOKENS

    return {"seed": seed_opt, "stock": stock_opt}


def memory_limit(model: SeedOPTForCausalLM) -> int:
    """Return the bytes of weights that a step in image mode must read: all layers and the visual head, no words."""
    tables = model.get_input_embeddings().weight.nbytes
    return sum(parameter.nbytes for parameter in model.parameters()) - tables


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    models = build(arguments)
    matmul = Matmul(arguments.matmul_size, getattr(torch, arguments.dtype), arguments.device)
    # The matrix is too large for the caches, so that its product with a vector shows how fast weights can be read.
    rows = 2**15 if arguments.model != "toy" else 2**8
    matrix = torch.randn(rows, 2**12, device=arguments.device).to(getattr(torch, arguments.dtype))
    vector = matrix[0].clone()
    figures = {"arguments": {key: str(value) for key, value in vars(arguments).items()}, "batches": {}}
    for batch_size in arguments.batch_sizes:
        tasks = generators(models, batch_size, arguments)
        for task in tasks.values():
            task()  # warm
        # Reading memory limits a small batch, and multiplying matrices limits a large one.
        tasks |= {"matmul": matmul, "read": lambda: matrix @ vector}
        timings = interleave(tasks, arguments.rounds, arguments.device)
        result = {}
        for clock in ("wall", "cpu"):
            seconds = median_time(timings["seed"], clock)
            bandwidth = matrix.nbytes / median_time(timings["read"], clock)
            layers = memory_limit(models[0]) / models[0].dtype.itemsize
            flops = 2 * layers * batch_size * (PROMPT_LENGTH + IMAGE_TOKENS - 1)
            result[clock] = {
                "tokens_per_second": batch_size * IMAGE_TOKENS / seconds,
                "stock_tokens_per_second": batch_size * IMAGE_TOKENS / median_time(timings["stock"], clock),
                "times_stock": median_ratio(timings["stock"], timings["seed"], clock),
                "share_of_memory_limit": memory_limit(models[0]) * IMAGE_TOKENS / bandwidth / seconds,
                "share_of_matmul_peak": flops / seconds / (matmul.flops / median_time(timings["matmul"], clock)),
            }
        figures["batches"][batch_size] = result
        for clock, row in result.items():
            print(
                f"OPT-{arguments.model} {arguments.dtype} batch {batch_size}, {arguments.rounds} rounds, {clock} time: "
                f"{row['tokens_per_second']:.1f} tokens/s, {row['times_stock']:.2f} times stock OPT "
                f"({row['stock_tokens_per_second']:.1f}); {row['share_of_memory_limit']:.2f} of the memory limit, "
                f"{row['share_of_matmul_peak']:.2f} of the matmul peak"
            )
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
