"""Put a trained image tokenizer, a Stable Diffusion decoder and a language model into one repository, as on the Hub.

    python examples/seed_tiny/package_model.py --image-tokenizer runs/image_tokenizer --decoder runs/stable_diffusion \
        --captions emoji64/train.parquet --guidance-scale 3 --num-inference-steps 12 --output hub_configs/seed-tiny

Run it again with `--language-model runs/language2` when the language model is trained. That model must be trained on
codes of the packaged image tokenizer, because rounding the weights to bfloat16 changes a few codes. The distinct first
captions of `--captions` become image_tokenizer/captions.txt, from which `seed demo` chooses the nearest. A README.md in
the output folder is kept.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import AutoModelForCausalLM, AutoTokenizer

from seed import SeedImageProcessorPil, SeedModel, SeedPipeline, SeedProcessor
from seed.data.image_text import load_image_text
from seed.repository_seed import CAPTIONS_FILE

# If no dtype is asked for, transformers loads the dtype that the config names, while diffusers loads UNet and VAE in
# float32: a stock pipeline would mix the two.
FLOAT32 = {"dtype": "float32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-tokenizer", required=True, help="folder of stage II's model")
    parser.add_argument(
        "--decoder",
        required=True,
        help="folder of a Stable Diffusion model, or the output folder of train_stable_diffusion.py",
    )
    parser.add_argument(
        "--captions", required=True, help="image-text data whose first captions `seed demo` chooses from"
    )
    parser.add_argument("--guidance-scale", type=float, default=7.5, help="guidance scale of the diffusion")
    parser.add_argument("--num-inference-steps", type=int, default=50, help="steps of the diffusion")
    parser.add_argument("--language-model", help="folder that examples/train_language.py wrote")
    parser.add_argument("--token-guidance-scale", type=float, help="guidance scale of the language model when it draws")
    parser.add_argument(
        "--token-temperature",
        type=float,
        help="temperature at which the language model samples codes (default: the likeliest code)",
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="stored weights"
    )
    parser.add_argument("--output", required=True, help="folder for the repository")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)

    decoder_source = Path(arguments.decoder)
    if not (decoder_source / "model_index.json").is_file() and (decoder_source / "pipeline").is_dir():
        decoder_source /= "pipeline"
    decoder = StableDiffusionPipeline.from_pretrained(decoder_source, dtype=dtype, safety_checker=None)
    image_tokenizer = SeedModel.from_pretrained(arguments.image_tokenizer, dtype=dtype)
    pipeline = SeedPipeline(
        image_tokenizer=image_tokenizer,
        unet=decoder.unet,
        vae=decoder.vae,
        scheduler=decoder.scheduler,
        image_processor=SeedImageProcessorPil.from_pretrained(arguments.image_tokenizer),
        # Drawing from codes needs neither; with them, the stock StableDiffusionPipeline draws from captions.
        text_encoder=decoder.text_encoder,
        tokenizer=decoder.tokenizer,
        guidance_scale=arguments.guidance_scale,
        num_inference_steps=arguments.num_inference_steps,
    )
    pipeline.save_pretrained(arguments.output)
    decoder_folder = Path(arguments.output) / "decoder"
    _edit_json(decoder_folder / "text_encoder" / "config.json", FLOAT32)
    for part in ("unet", "vae"):
        _edit_json(decoder_folder / part / "config.json", {"_name_or_path": ""})  # not the folder of its training
    folder = Path(arguments.output) / "image_tokenizer"
    AutoTokenizer.from_pretrained(arguments.image_tokenizer).save_pretrained(folder)
    captions = dict.fromkeys(captions[0] for captions in load_image_text(arguments.captions)["captions"])
    (folder / CAPTIONS_FILE).write_text("\n".join(captions) + "\n", encoding="utf-8")
    if arguments.language_model:
        add_language_model(arguments, dtype)
    size = sum(file.stat().st_size for file in Path(arguments.output).rglob("*") if file.is_file())
    print(f"{arguments.output}: {size / 1e6:.1f} MB, {len(captions)} captions")


def add_language_model(arguments: argparse.Namespace, dtype: torch.dtype) -> None:
    """
    Add the language model, and a processor with its settings, to the packaged repository.

    Raises:
        ValueError: the language model was not trained on the codes of the packaged image tokenizer.
    """
    output = Path(arguments.output)
    processor = SeedProcessor.from_pretrained(arguments.language_model)
    processor.set_image_tokenizer(SeedModel.from_pretrained(output / "image_tokenizer", dtype=torch.float32))
    processor.image_repository, processor.decoder_repository = "image_tokenizer", "decoder"
    processor.guidance_scale = arguments.guidance_scale
    processor.num_inference_steps = arguments.num_inference_steps
    processor.token_guidance_scale = arguments.token_guidance_scale
    processor.token_temperature = arguments.token_temperature
    model = AutoModelForCausalLM.from_pretrained(arguments.language_model, dtype=dtype)
    processor.check_language_model(model)
    model.config.use_cache = True  # Trainer turns it off
    model.save_pretrained(output)
    processor.save_pretrained(output)


def _edit_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


if __name__ == "__main__":
    main()
