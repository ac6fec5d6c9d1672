"""`seed convert`: turn released checkpoints into folders that `SeedModel.from_pretrained` loads."""

import argparse
import os

from .checks import check_checkpoints, check_model, check_new_folder
from .options import COUNT, DTYPES, positive


def add_parser(verbs) -> None:
    """Add the verb, with all formats that it converts, to the command line."""
    parser = verbs.add_parser("convert", help="convert released checkpoints")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    _add_seed1(formats)
    _add_blip2(formats)


def _add_seed1(formats) -> None:
    parser = formats.add_parser(
        "seed1",
        help="convert the released SEED-1 image tokenizer",
        description="Converts the released SEED-1 files into a folder that SeedModel.from_pretrained loads.",
    )
    parser.add_argument(
        "--vit", metavar="FILE", help="eva_vit_g.pth; not needed if another file holds visual_encoder.*"
    )
    parser.add_argument("--causal-qformer", metavar="FILE", required=True, help="causal_qformer.pth")
    parser.add_argument("--seed-tokenizer", metavar="FILE", required=True, help="seed_tokenizer.pth")
    _add_output(parser)
    parser.add_argument(
        "--vision-heads", type=positive, metavar=COUNT, default=16, help="attention heads of the ViT (default: 16)"
    )
    parser.add_argument(
        "--qformer-heads",
        type=positive,
        metavar=COUNT,
        default=12,
        help="attention heads of both Q-Formers (default: 12)",
    )
    parser.add_argument(
        "--decoder-heads",
        type=positive,
        metavar=COUNT,
        default=12,
        help="attention heads of both code decoders (default: 12)",
    )
    parser.add_argument(
        "--vision-layers", type=positive, metavar=COUNT, help="ViT blocks to use (default: all; 39 if there are 40)"
    )
    parser.add_argument(
        "--text-tokenizer",
        metavar="MODEL",
        help="folder or Hub id of bert-base-uncased, which is saved with the model; only retrieval needs it",
    )
    parser.set_defaults(check=check_seed1, run=run_seed1)


def _add_blip2(formats) -> None:
    parser = formats.add_parser(
        "blip2",
        help="convert BLIP-2's image-text retrieval weights, from which stage I starts",
        description="Converts a Blip2ForImageTextRetrieval into a folder that SeedModel.from_pretrained loads.",
    )
    parser.add_argument("--model", required=True, help="folder or Hub id, e.g. Salesforce/blip2-itm-vit-g")
    _add_output(parser)
    parser.set_defaults(check=check_blip2, run=run_blip2)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="the type of the weights in the new folder (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the SEED model in the output folder")


def check_seed1(args: argparse.Namespace) -> None:
    check_checkpoints(
        [
            ("ViT checkpoint", args.vit),
            ("Causal Q-Former checkpoint", args.causal_qformer),
            ("SEED tokenizer checkpoint", args.seed_tokenizer),
        ]
    )
    check_model(args.text_tokenizer)
    check_new_folder(args.output, args.overwrite)


def run_seed1(args: argparse.Namespace) -> None:
    import torch

    from ..conversion.seed1 import convert_seed1

    config = convert_seed1(
        args.vit,
        args.causal_qformer,
        args.seed_tokenizer,
        args.output,
        vision_heads=args.vision_heads,
        qformer_heads=args.qformer_heads,
        decoder_heads=args.decoder_heads,
        vision_layers=args.vision_layers,
        dtype=getattr(torch, args.dtype),
        text_tokenizer=args.text_tokenizer,
        overwrite=args.overwrite,
    )
    print(
        f"Wrote {args.output}: {config.num_codes} codes of {config.codebook_size}, "
        f"{'with' if config.use_text_branch else 'without'} a text branch."
    )


def check_blip2(args: argparse.Namespace) -> None:
    if os.path.isfile(args.model):
        raise NotADirectoryError(
            f"{args.model}: this is a file; name the folder or Hub id of a Blip2ForImageTextRetrieval."
        )
    check_model(args.model)
    check_new_folder(args.output, args.overwrite)


def run_blip2(args: argparse.Namespace) -> None:
    import torch

    from ..conversion.blip2 import convert_blip2

    config = convert_blip2(args.model, args.output, dtype=getattr(torch, args.dtype), overwrite=args.overwrite)
    print(
        f"Wrote {args.output}: a bidirectional Q-Former with {config.num_codes} queries and "
        f"{config.vision_config.num_hidden_layers} ViT blocks."
    )
