"""What hub_configs holds beside seed-tiny: the full size's config."""

from pathlib import Path

from seed import SeedConfig, SeedImageProcessorPil

ROOT = Path(__file__).parents[1]


def test_seed_1_has_the_sizes_of_the_paper():
    folder = ROOT / "hub_configs" / "seed-1" / "image_tokenizer"
    ours, default = SeedConfig.from_pretrained(folder).to_dict(), SeedConfig().to_dict()
    told = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert {key for key in ours.keys() | default.keys() if ours.get(key) != default.get(key)} <= told
    assert SeedImageProcessorPil.from_pretrained(folder).size == {"height": 224, "width": 224}
