"""Write questions about pictures, from the emoji set by rules and from easy-vqa, to one Parquet file for each split.

    python examples/seed_tiny/build_questions.py --emoji data/emoji64 --easy-vqa --output data/vqa
    python examples/seed_tiny/build_questions.py --emoji data/emoji64 --easy-vqa \
        --output data/vqa_codes --model REPOSITORY

The script writes `emoji_SPLIT.parquet` for every split of the emoji set (build_emoji.py makes it),
`easy_vqa_train.parquet` and `easy_vqa_test.parquet`, all in one schema. `makers.questions.emoji_questions` has the
rules. With `--model`, codes take the place of the pictures: the image tokenizer of that SEED repository makes them, the
files carry its hash, and a language model can be trained on them. `--codes FILE ...` names files of `seed tokenize`,
whose pictures are then not tokenised again.
"""

import argparse
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from makers.questions import easy_vqa_questions, emoji_questions, write_questions
from tqdm import tqdm

from seed.hardware import keep_freed_memory

COLUMNS = ["id", "image", "license", "attribution", "name", "names", "category", "subcategory"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, help="folder that build_emoji.py wrote")
    parser.add_argument("--easy-vqa", action="store_true", help="write easy-vqa's questions (pip install easy-vqa)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the Parquet files")
    parser.add_argument("--model", help="folder or Hub id of a SEED repository: write its codes in place of pictures")
    parser.add_argument(
        "--codes", nargs="*", default=[], metavar="FILE", help="with --model: files of codes made before"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures tokenised at a time")
    args = parser.parse_args(argv)
    keep_freed_memory()
    if not args.emoji and not args.easy_vqa:
        parser.error("nothing to do: pass --emoji, --easy-vqa or both")
    if args.codes and not args.model:
        parser.error("--codes needs --model, whose codes they are")

    tokenizer = Tokenizer(args.model, args.codes, args.batch_size) if args.model else None
    for name, rows in sources(args):
        codes, metadata = tokenizer.codes_of(rows) if tokenizer else (None, None)
        path = args.output / f"{name}.parquet"
        write_questions(rows, path, codes, metadata)
        print(f"{path}: {len(rows)} questions, {dict(Counter(row['kind'] for row in rows))}", flush=True)


def sources(args: argparse.Namespace):
    """Yield the name and the rows of each file to write."""
    if args.emoji:
        files = sorted(args.emoji.glob("*.parquet"))
        if not files:
            raise FileNotFoundError(f"{args.emoji}: no Parquet files; examples/seed_tiny/build_emoji.py makes them.")
        for file in files:
            pictures = pq.read_table(file, columns=COLUMNS).to_pylist()
            asked = [question for row in tqdm(pictures, desc=file.stem) for question in emoji_questions(row)]
            yield f"emoji_{file.stem}", asked
    if args.easy_vqa:
        for split in ("train", "test"):
            yield f"easy_vqa_{split}", list(easy_vqa_questions(split))


class Tokenizer:
    """The image tokenizer of a SEED repository, in float32, and codes that it has made before."""

    def __init__(self, model: str, files: list[str], batch_size: int):
        from seed.data.codes import CodesMetadata, read_codes
        from seed.data.tokenization import load_image_tokenizer

        self.model, self.image_processor = load_image_tokenizer(model)
        self.metadata = CodesMetadata.of(self.model, self.image_processor)
        self.batch_size = batch_size
        self.known = {}
        for file in files:
            found = read_codes(file, self.metadata.codebook_size, self.metadata.num_codes)
            if found.metadata != self.metadata:
                raise ValueError(f"{file}: its codes were not made by {model}'s image tokenizer; tokenise them again.")
            self.known.update(zip(found.ids, found.codes.tolist()))

    def codes_of(self, rows: list[dict]):
        """Return the codes of every distinct picture by its id, and the metadata that say what made them."""
        import torch

        from seed.data.images import load_image

        pictures = {row["id"]: row["image"] for row in rows}
        codes = {name: self.known[name] for name in pictures if name in self.known}
        ids = [name for name in pictures if name not in codes]
        for start in tqdm(range(0, len(ids), self.batch_size), desc="tokenize"):
            batch = ids[start : start + self.batch_size]
            pixels = self.image_processor([load_image(pictures[name]) for name in batch], return_tensors="pt")
            with torch.no_grad():
                found = self.model.get_image_tokens(pixels["pixel_values"])
            codes.update(zip(batch, found.tolist()))
        return codes, self.metadata


if __name__ == "__main__":
    main()
