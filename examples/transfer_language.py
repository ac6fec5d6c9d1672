"""A language model for another image tokenizer: a new code begins as the mean of the old ones whose places it takes.

    python examples/transfer_language.py --model hub_configs/seed-tiny --image-tokenizer runs/seed \
        --old-codes runs/old.parquet --new-codes runs/new.parquet --output runs/language0

Both files hold the codes of the same pictures and views, as `seed tokenize` or examples/build_codes.py makes them with
either tokenizer; several pairs may be given. The output is a SEED repository to train on with
examples/train_language.py.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from seed import SeedProcessor
from seed.data.codes import check_made_by, read_codes
from seed.data.tokenization import load_image_tokenizer
from seed.files_seed import replace_into
from seed.training.language_stage import check_output, point_processor_at
from seed.training.transfer import transfer_codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SEED repository of the language model")
    parser.add_argument("--image-tokenizer", required=True, help="SEED repository or image tokenizer, the new one")
    parser.add_argument("--old-codes", required=True, action="append", help="by the model's own tokenizer")
    parser.add_argument("--new-codes", required=True, action="append", help="of the same pictures, by the new one")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    check_output(arguments.output, arguments.model)

    image_tokenizer, image_processor = load_image_tokenizer(arguments.image_tokenizer)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    size, num_codes = model.config.codebook_size, model.config.num_codes
    made_by = {"old": model.config.image_tokenizer_hash, "new": image_tokenizer.codes_hash()}
    codes: dict[str, list[torch.Tensor]] = {"old": [], "new": []}
    for paths in zip(arguments.old_codes, arguments.new_codes, strict=True):
        files = [read_codes(path, size, num_codes) for path in paths]
        if files[0].ids != files[1].ids:
            raise ValueError(f"{paths[0]} and {paths[1]} hold other pictures, or in another order.")
        for path, file, which in zip(paths, files, codes):
            if made_by[which] is not None:
                check_made_by(path, made_by[which], f"the {which} image tokenizer (--{which}-codes)")
            codes[which].append(file.codes)
    unseen = transfer_codes(model, image_tokenizer, torch.cat(codes["old"]), torch.cat(codes["new"]))
    print(f"{unseen} of {size} new codes stand in none of these pictures.")

    processor = SeedProcessor.from_pretrained(arguments.model)
    processor.image_processor = image_processor
    processor.image_tokenizer_hash = made_by["new"]
    point_processor_at(processor, arguments.image_tokenizer, arguments.output)
    partial = arguments.output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    replace_into(partial, arguments.output)


if __name__ == "__main__":
    main()
