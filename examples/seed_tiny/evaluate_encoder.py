"""Measure an image encoder by the names of nearest pictures, with nothing trained on top.

    python examples/seed_tiny/evaluate_encoder.py --encoder runs/encoder --train data/emoji64/train.parquet \
        --style data/emoji64/val_style.parquet --concept data/emoji64/val_concept.parquet

Pictures are compared by the cosine of their pooled patch features. Two shares are given:

* for --style, pictures of known concepts in a style never seen: the nearest training picture has the same name;
* for --concept, pictures of concepts never seen: the nearest other picture of the file has the same name.

Choose settings on val_style and val_concept; look at the test files once, at the end.
"""

import argparse
import json
from pathlib import Path

import torch
from makers.encoder.model import pooled_features
from tqdm import tqdm
from transformers import AutoModel

from seed import SeedImageProcessorPil
from seed.data.image_text import load_image_text
from seed.data.images import load_image
from seed.hardware import keep_freed_memory

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="folder of an encoder and its preprocessing")
    parser.add_argument("--train", required=True, help="pictures that name those of --style")
    parser.add_argument("--style", action="append", default=[], help="known concepts, new style; may be repeated")
    parser.add_argument("--concept", action="append", default=[], help="new concepts; may be repeated")
    parser.add_argument("--size", type=int, help="pixels of a side, instead of the encoder's own")
    args = parser.parse_args()
    keep_freed_memory()
    processor = SeedImageProcessorPil.from_pretrained(args.encoder)
    if args.size:
        processor.size = {"height": args.size, "width": args.size}
    encoder = AutoModel.from_pretrained(args.encoder, dtype=torch.float32).eval()
    shares = {}
    if args.style:
        known, known_names = features(args.train, encoder, processor)
    for path in args.style:
        found, names = features(path, encoder, processor)
        shares[Path(path).stem] = named_by_nearest(found, names, known, known_names)
    for path in args.concept:
        found, names = features(path, encoder, processor)
        shares[Path(path).stem] = named_by_other(found, names)
    print(json.dumps({name: round(share, 4) for name, share in shares.items()}))


@torch.no_grad()
def features(path: str, encoder, processor) -> tuple[torch.Tensor, list[str]]:
    """Return the L2-normalised pooled features `(pictures, dim)` of a table's pictures, and their names."""
    dataset = load_image_text(path)
    names = [captions[0].casefold() for captions in dataset["captions"]]
    found = []
    for start in tqdm(range(0, len(dataset), BATCH), desc=Path(path).stem, mininterval=5):
        images = [load_image(image) for image in dataset[start : start + BATCH]["image"]]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        output = encoder(pixels.contiguous(memory_format=torch.channels_last))
        found.append(torch.nn.functional.normalize(pooled_features(output), dim=-1))
    return torch.cat(found), names


def named_by_nearest(queries: torch.Tensor, names: list[str], known: torch.Tensor, known_names: list[str]) -> float:
    """Return the share of queries whose nearest known picture has their name."""
    nearest = (queries @ known.t()).argmax(dim=1).tolist()
    return sum(known_names[index] == name for index, name in zip(nearest, names)) / len(names)


def named_by_other(pictures: torch.Tensor, names: list[str]) -> float:
    """Return the share of pictures whose nearest other picture has the same name."""
    similarity = (pictures @ pictures.t()).fill_diagonal_(-1.0)
    nearest = similarity.argmax(dim=1).tolist()
    return sum(names[index] == name for index, name in zip(nearest, names)) / len(names)


if __name__ == "__main__":
    main()
