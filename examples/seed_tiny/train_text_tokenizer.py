"""Train the tokenizer of seed-tiny's text branch on captions. It has lower-case word pieces, like BERT's.

    python examples/seed_tiny/train_text_tokenizer.py --data data/emoji64/train.parquet \
        --data data/emoji64/icons.parquet --vocab-size 4096 --output runs/text_tokenizer

Pieces that are equally frequent are chosen differently from run to run, so keep the folder; the same command leaves a
finished folder as it is. examples/train_qformer.py reads it (--text-tokenizer).
"""

import argparse
from pathlib import Path

from makers.text_tokenizer import kept_tokenizer, train_text_tokenizer

from seed.data.image_text import load_image_text
from seed.data.image_text_sources import caption_list


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, action="append", help="image-text data; may be repeated")
    parser.add_argument("--vocab-size", type=int, default=4096, help="entries of the vocabulary")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    datasets = [load_image_text(path) for path in arguments.data]
    captions = [caption for dataset in datasets for texts in dataset["captions"] for caption in caption_list(texts)]
    tokenizer = kept_tokenizer(arguments.output, captions, arguments.vocab_size, train_text_tokenizer)
    print(f"{arguments.output}: {len(tokenizer)} entries, from {len(captions)} captions")


if __name__ == "__main__":
    main()
