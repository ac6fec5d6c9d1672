"""
seed-tiny's language model with weights of 8 bits, as transformers loads them by torchao.

    pip install torchao && python -m pytest -m slow tests/test_quantized_loading.py
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, TorchAoConfig

import seed

PROMPTS = ["red apple", "cat face", "house"]


@pytest.mark.slow
def test_eight_bits_write_nearly_the_same_images_and_scores():
    from torchao.quantization import Int8WeightOnlyConfig

    folder, options = seed.default_model(), {"dtype": torch.float32}
    whole = AutoModelForCausalLM.from_pretrained(folder, **options)
    rounded = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), **options
    )
    layer = rounded.get_decoder().layers[0].fc1.weight
    assert type(layer) is not torch.nn.Parameter and "Int8" in type(layer).__name__
    prompts = AutoProcessor.from_pretrained(folder).drawing_prompts(PROMPTS)
    written = [
        model.generate(**prompts, generation_mode="image", do_sample=False)[:, -33:] for model in (whole, rounded)
    ]
    assert (written[0] == written[1]).float().mean() > 0.9
    ids = torch.cat([prompts["input_ids"], written[0]], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.ones_like(written[0])], dim=1)
    with torch.no_grad():
        scores = [model(input_ids=ids, attention_mask=mask).logits for model in (whole, rounded)]
    assert (scores[0] - scores[1]).abs().max() < 0.03 * scores[0].abs().max()
