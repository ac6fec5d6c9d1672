"""Make codes of several augmented views of every picture, to train a language model on few pictures (our choice).

    python examples/build_codes.py --data emoji64/train.parquet --views 8 --model runs/image_tokenizer \
        --feature-cache runs/features --output runs/codes.parquet

Rows with the same `id` are views of one picture. The column `view` numbers them; view 0 is the picture itself, the only
one that `seed tokenize` makes codes of, in float32. Vision features go through a cache like that of the training
stages: they are computed in bfloat16 where the machine is fast at it, as the metadata of the codes say, and kept as
float16. The stages' own cache can be used where the weights are the same to the bit; a tokenizer that was packaged in
another dtype needs a cache of its own. A run that was killed continues where it stopped.
"""

import dataclasses

import torch
from arguments import add_data_options, make_parser

from seed import SeedImageProcessorPil, SeedModel
from seed.data.codes import CodesMetadata
from seed.hardware import keep_freed_memory
from seed.repository_seed import SeedRepository
from seed.training.feature_cache import codes_of_cache, open_embedding_cache
from seed.training.language_examples import write_views
from seed.training.recipes import DataRecipe, StageRecipe
from seed.training.stage import StageData, open_sources


def main() -> None:
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--model", required=True, help="folder or Hub id of a SEED repository or an image tokenizer")
    parser.add_argument("--views", type=int, required=True, help="views of each picture, the picture itself included")
    parser.add_argument("--feature-cache", required=True, help="folder for the vision features, as in training")
    parser.add_argument("--output", required=True, help="the Parquet file to write")
    arguments = parser.parse_args()

    keep_freed_memory()
    folder = SeedRepository(arguments.model).image_tokenizer_folder()
    # This loads float32 and the text branch, as the stages do: the cache knows a part by the hash of all its weights.
    model = SeedModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = SeedImageProcessorPil.from_pretrained(folder)

    recipe = StageRecipe(epochs=0, training={}, data=DataRecipe(views=arguments.views))
    data = StageData([arguments.data], split=arguments.split, image_root=arguments.image_root)
    cache_folder = arguments.feature_cache
    (source,) = open_sources(data, recipe, model, processor, output=cache_folder, feature_cache=cache_folder)
    cache = open_embedding_cache(model, source.cache)
    usable = [picture for picture in range(len(cache)) if picture not in cache.broken]
    codes = codes_of_cache(model, cache)[usable]
    metadata = dataclasses.replace(CodesMetadata.of(model, processor), dtype=cache.dtype)
    write_views(arguments.output, codes, [source.captions[picture] for picture in usable], metadata)
    print(f"Wrote {arguments.output}: {codes.shape[1]} views of {codes.shape[0]} pictures.")


if __name__ == "__main__":
    main()
