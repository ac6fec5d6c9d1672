"""
Measure what is trained, saved and held in memory, for SEED-OPT and for stock OPT.

SEED-OPT has LoRA and its visual modules. Stock OPT has the same LoRA with `resize_token_embeddings`, `modules_to_save`
and `ensure_weight_tying`. Each takes one training step in a process of its own.

    python examples/benchmarks/benchmark_adapter_memory.py --model 125m
    python examples/benchmarks/benchmark_adapter_memory.py --model 2.7b --layers 1
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measuring import measure_in_fresh_process, resident_memory
from peft import LoraConfig, get_peft_model
from transformers import OPTConfig, OPTForCausalLM

from seed.configuration_seed_language import SeedOPTConfig
from seed.modeling_seed_language import SeedOPTForCausalLM
from seed.training.language_examples import LoraRecipe
from seed.training.lora import TARGET_MODULES, add_lora

# OPT's published shapes: width, layers, heads.
SHAPES = {"toy": (32, 2, 4), "125m": (768, 12, 12), "2.7b": (2560, 32, 32)}
LORA = LoraRecipe(rank=16, alpha=32.0)
TEXT_ROWS = 50272


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="125m", help="size of OPT")
    parser.add_argument("--layers", type=int, help="number of layers, to fit in memory (default: OPT's)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--measure", choices=("seed", "stock"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def build(which: str, arguments: argparse.Namespace):
    width, layers, heads = SHAPES[arguments.model]
    shape = {
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": arguments.layers or layers,
        "num_attention_heads": heads,
    }
    if which == "seed":
        return add_lora(SeedOPTForCausalLM(SeedOPTConfig(**shape, text_embedding_rows=TEXT_ROWS)), LORA)
    model = OPTForCausalLM(OPTConfig(**shape, vocab_size=TEXT_ROWS))
    model.resize_token_embeddings(SeedOPTConfig().vocab_size, mean_resizing=False)
    config = LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules=TARGET_MODULES["seed_opt"],
        modules_to_save=["embed_tokens"], ensure_weight_tying=True,
    )  # fmt: skip
    return get_peft_model(model, config)


def measure(which: str, arguments: argparse.Namespace) -> dict:
    """Take one training step of AdamW on 4 x 64 tokens, save the adapter, and return all sizes in bytes."""
    torch.manual_seed(0)
    baseline = resident_memory()["VmRSS"]
    model = build(which, arguments).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(3, SeedOPTConfig().vocab_size, (4, 64))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    steady = resident_memory()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        saved = (Path(folder) / "adapter_model.safetensors").stat().st_size
    return {
        "trainable_bytes": sum(parameter.nbytes for parameter in trained),
        "adapter_bytes": saved,
        "steady_bytes": steady["VmRSS"] - baseline,
        "peak_bytes": steady["VmHWM"] - baseline,
    }


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments)))
        return
    options = ["--model", arguments.model, *(["--layers", str(arguments.layers)] if arguments.layers else [])]
    figures = {which: measure_in_fresh_process(__file__, *options, "--measure", which) for which in ("seed", "stock")}
    for name, ours in figures["seed"].items():
        stock = figures["stock"][name]
        print(f"{name}: {ours / 2**20:.1f} MiB, {ours / stock:.2f} of stock ({stock / 2**20:.1f} MiB)")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
