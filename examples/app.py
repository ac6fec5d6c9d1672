"""Show a page to play with: it takes a picture, and shows its codes and what the first k of them draw.

    pip install -e ".[app]" && python examples/app.py [--model FOLDER_OR_ID]

The page opens on this machine only, at http://127.0.0.1:7860.
"""

import argparse

import torch
from PIL import Image

try:
    import gradio
except ImportError as error:
    raise SystemExit('This page needs gradio: pip install -e ".[app]"') from error

from seed import SeedPipeline, default_model
from seed.data import load_image, shipped_pictures


def build(model: str) -> gradio.Blocks:
    """Return the page around one loaded pipeline."""
    pipeline = SeedPipeline.from_pretrained(model, dtype=torch.float32)
    num_codes = pipeline.image_tokenizer.config.num_codes

    def redraw(picture: Image.Image, prefix_length: float, seed: float) -> tuple[Image.Image, str]:
        if picture is None:
            raise gradio.Error("Choose a picture first.")
        codes = pipeline.tokenize_images([load_image(picture)])
        generator = torch.Generator().manual_seed(int(seed))
        drawing = pipeline(codes=codes, prefix_length=int(prefix_length), generator=generator).images[0]
        return drawing.resize((256, 256), Image.Resampling.BICUBIC), " ".join(map(str, codes[0].tolist()))

    with gradio.Blocks(title="SEED") as page:
        gradio.Markdown("# SEED: a picture, its codes, and what the codes draw")
        with gradio.Row():
            picture = gradio.Image(type="pil", label="picture")
            drawing = gradio.Image(label="drawn from its codes")
        prefix_length = gradio.Slider(1, num_codes, value=num_codes, step=1, label="draw from the first k codes")
        seed = gradio.Number(0, precision=0, label="seed")
        codes = gradio.Textbox(label="codes")
        gradio.Button("Draw").click(redraw, [picture, prefix_length, seed], [drawing, codes], api_name="redraw")
        gradio.Examples([str(path) for path in shipped_pictures()], picture)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder or Hub id of a SEED repository (default: seed-tiny)")
    arguments = parser.parse_args()
    build(arguments.model or default_model()).launch(server_name="127.0.0.1")


if __name__ == "__main__":
    main()
