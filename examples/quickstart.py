"""Turn an image into 32 codes, and draw from the codes: `python examples/quickstart.py [IMAGE] [MODEL]`."""

import sys

import torch
from PIL import Image

import seed
from seed.data import shipped_pictures

path = sys.argv[1] if len(sys.argv) > 1 else shipped_pictures()[0]
model = sys.argv[2] if len(sys.argv) > 2 else seed.default_model()

# Tokenise the image. Make codes in float32 if you store or compare them.
pipeline = seed.SeedPipeline.from_pretrained(model, dtype=torch.float32)
image = Image.open(path).convert("RGB")
pixel_values = pipeline.image_processor(image, return_tensors="pt")["pixel_values"]
codes = pipeline.image_tokenizer.get_image_tokens(pixel_values)
print(codes.tolist())

# Draw from all codes, and from the first eight: the order of the codes is causal, so that a prefix can be drawn.
drawn = pipeline(codes=codes, generator=torch.Generator().manual_seed(0)).images[0]
coarse = pipeline(codes=codes, prefix_length=8, generator=torch.Generator().manual_seed(0)).images[0]
drawn.save("quickstart_32_codes.png")
coarse.save("quickstart_8_codes.png")
