import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from tiny_language import tiny_language_model, tiny_processor, tiny_text_tokenizer
from tiny_repository import make_seed_model
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainingArguments

from seed import SeedImageProcessorPil, SeedOPTForCausalLM
from seed.training.language_examples import LoraRecipe
from seed.training.lora import adapter_base, add_lora, load_adapter, merge, open_language_model, save_adapter
from seed.training.packing import PackingCollator

LORA = LoraRecipe(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def batch():
    processor = tiny_processor()
    codes = torch.randint(64, (2, 32), generator=torch.Generator().manual_seed(0))
    examples = [processor.caption_example(codes[0], "a dog"), processor.drawing_example("a cat", codes[1])]
    return PackingCollator(1, 128)(examples)


def train(model, batch, steps: int = 4) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def test_only_lora_and_visual_modules_are_trained(batch):
    model = tiny_language_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = add_lora(model, LORA)
    trainable = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".modules_to_save." in name for name in trainable)
    # 2 layers, 6 matrices with an A and a B each; projection with bias, delimiters, head
    assert len(trainable) == 2 * 6 * 2 + 4
    losses = train(lora, batch)
    assert losses[-1] < losses[0]
    after = lora.state_dict()
    changed = set()
    for name, tensor in before.items():
        path, leaf = name.rsplit(".", 1)
        found = next(
            after[key]
            for key in (f"base_model.model.{path}.{leaf}", f"base_model.model.{path}.base_layer.{leaf}",
                        f"base_model.model.{name.replace('.', '.modules_to_save.default.', 1)}")
            if key in after
        )  # fmt: skip
        if not torch.equal(found, tensor):
            changed.add(name)
    assert changed == {
        "visual_embeddings.projection.weight",
        "visual_embeddings.projection.bias",
        "visual_embeddings.delimiters.weight",
        "visual_head.weight",
    }, "text embedding, head, codebook and every frozen matrix are bit for bit what they were"


def test_an_adapter_saves_reloads_and_merges(batch, tmp_path):
    lora = add_lora(tiny_language_model(), LORA)
    train(lora, batch)
    expected = logits(lora, batch)
    save_adapter(lora, tmp_path / "adapter", "the-text-model")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not [name for name in stored if "embed_tokens" in name or "lm_head" in name], "the adapter alone"
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "the-text-model"
    )

    torch.manual_seed(1)
    base = tiny_language_model()
    with torch.no_grad():  # whatever the new rows of this start are, the adapter brings its own
        base.visual_head.weight.add_(1)
        base.visual_embeddings.projection.weight.add_(1)
    reloaded = load_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(reloaded, batch), expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in reloaded.parameters())

    merged = merge(reloaded)
    assert type(merged) is SeedOPTForCausalLM
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    untouched = tiny_language_model().state_dict()
    for name in ("model.decoder.embed_tokens.weight", "lm_head.weight", "visual_embeddings.codebook"):
        assert torch.equal(merged.state_dict()[name], untouched[name]), name
    merged.save_pretrained(tmp_path / "merged")
    again = SeedOPTForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again, batch), logits(merged, batch), rtol=0, atol=0)


def test_an_adapter_for_another_vocabulary_is_refused(tmp_path):
    save_adapter(add_lora(tiny_language_model(), LORA), tmp_path / "adapter", "the-text-model")
    other = tiny_language_model()
    other.config.text_vocab_size -= 2
    other.config.image_tokenizer_hash = "0" * 64
    with pytest.raises(
        ValueError, match=r"another vocabulary: it has text_vocab_size 330, image_tokenizer_hash .*the-text"
    ):
        load_adapter(other, tmp_path / "adapter")
    # One that was saved before there were code embeddings, and says nothing of them, is one without.
    path = tmp_path / "adapter" / "seed_vocabulary.json"
    stored = json.loads(path.read_text())
    assert stored.pop("code_embeddings") is False
    path.write_text(json.dumps(stored))
    load_adapter(tiny_language_model(), tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="seed_vocabulary.json is missing"):
        load_adapter(tiny_language_model(), tmp_path)


def test_what_trainer_saves_of_it_loads_too(batch, tmp_path):
    """It does not say what it is for; its tensors say how many codes."""
    lora = add_lora(tiny_language_model(), LORA)
    train(lora, batch)
    options = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    Trainer(lora, options).save_model(str(tmp_path / "plain"))
    assert not (tmp_path / "plain" / "seed_vocabulary.json").exists()
    reloaded = load_adapter(tiny_language_model(), tmp_path / "plain")
    torch.testing.assert_close(logits(reloaded, batch), logits(lora, batch), rtol=0, atol=0)
    other = tiny_language_model()
    other.config.codebook_size = 32
    with pytest.raises(ValueError, match="another vocabulary: it has codebook_size 64, the model codebook_size 32"):
        load_adapter(other, tmp_path / "plain")


def test_an_adapter_comes_from_the_hub(batch, tmp_path, monkeypatch):
    lora = add_lora(tiny_language_model(code_embeddings=True), LORA)
    save_adapter(lora, tmp_path / "adapter", "organisation/text-model")
    fetched = []

    def snapshot_download(name, allow_patterns, **options):
        fetched.append((name, *allow_patterns))
        return str(tmp_path / "adapter")

    monkeypatch.setattr("seed.repository_seed.snapshot_download", snapshot_download)
    reloaded = load_adapter(tiny_language_model(), "organisation/adapter")
    assert fetched == [("organisation/adapter", "*.json", "*.safetensors")]
    torch.testing.assert_close(logits(reloaded, batch), logits(lora, batch), rtol=0, atol=0)
    assert adapter_base("organisation/adapter") == "organisation/text-model"


@pytest.mark.parametrize("base, named", [("organisation/text-model", True), (".", False)])
def test_the_card_names_a_base_that_the_hub_accepts(tmp_path, base, named):
    """It refuses a card whose `base_model` is a path."""
    save_adapter(add_lora(tiny_language_model(), LORA), tmp_path / "adapter", base)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.base_model == (base if named else None) and card.data.library_name == "peft"
    assert f"They fit {base}" in card.text


def test_of_several_adapters_the_active_one_is_saved(batch, tmp_path):
    expected = {}
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        lora = add_lora(tiny_language_model(), LORA)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in lora.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.2)
        expected[name] = logits(lora, batch)
        save_adapter(lora, tmp_path / name, "the-text-model")
    several = load_adapter(tiny_language_model(), tmp_path / "a")
    for name in ("b", "c"):
        several.load_adapter(tmp_path / name, name)
    several.set_adapter("b")
    save_adapter(several, tmp_path / "saved", "the-text-model")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(
        path.name for path in (tmp_path / "a").iterdir()
    )
    found = logits(load_adapter(tiny_language_model(), tmp_path / "saved"), batch)
    torch.testing.assert_close(found, expected["b"], rtol=0, atol=0)
    assert not torch.allclose(found, expected["a"], atol=1e-2)


def test_peft_alone_does_not_lose_code_embeddings_in_silence(batch, tmp_path):
    save_adapter(add_lora(tiny_language_model(code_embeddings=True), LORA), tmp_path / "adapter", "the-text-model")
    with pytest.raises(RuntimeError, match="the adapter has code embeddings, and this model has none.*load_adapter"):
        PeftModel.from_pretrained(tiny_language_model(), tmp_path / "adapter")
    assert "load_adapter" in (tmp_path / "adapter" / "README.md").read_text()


def test_code_embeddings_are_trained_saved_and_merged(batch, tmp_path):
    lora = add_lora(tiny_language_model(code_embeddings=True), LORA)
    train(lora, batch)
    expected = logits(lora, batch)
    save_adapter(lora, tmp_path / "adapter", "the-text-model")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (rows,) = [tensor for name, tensor in stored.items() if name.endswith("visual_embeddings.codes.weight")]
    assert rows.shape == (64, 32)
    # They start at zero, and those of codes that the batch has not are not decayed away from it.
    seen = set((batch["input_ids"][batch["input_ids"] >= 332] - 332).tolist())
    assert {number for number, row in enumerate(rows) if row.any()} == seen
    merged = merge(load_adapter(tiny_language_model(code_embeddings=True), tmp_path / "adapter"))
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    # The frozen model that it was trained on may have none.
    given = merge(load_adapter(tiny_language_model(), tmp_path / "adapter"))
    torch.testing.assert_close(logits(given, batch), expected, rtol=1e-4, atol=1e-4)

    bare = add_lora(tiny_language_model(), LORA)
    with pytest.raises(ValueError, match="LoRA weights already"):
        bare.get_base_model().add_code_embeddings()


def test_half_precision_trains_in_float32_and_merges_back(batch, tmp_path):
    lora = add_lora(tiny_language_model().to(torch.bfloat16), LORA)
    trained = [parameter for parameter in lora.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train(lora, batch)
    assert losses[-1] < losses[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(lora, batch)
    # Without autocast, too: what is sampled between two steps meets float32 modules on bfloat16 weights.
    difference = (logits(lora, batch) - expected).float()
    assert difference.square().mean().sqrt() < 0.03 * expected.float().std()
    prompt = tiny_processor().drawing_prompts(["a dog"])
    assert lora.generate(**prompt, generation_mode="image").shape[1] == prompt["input_ids"].shape[1] + 33
    merged = merge(lora)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    # bfloat16 keeps 8 bits: merged weights round differently, far below what separates the scores.
    difference = (logits(merged, batch) - expected).float()
    assert difference.square().mean().sqrt() < 0.03 * expected.float().std()


def test_a_text_model_is_extended_and_a_trained_one_kept_to_its_tokenizer(tmp_path):
    processor = tiny_processor()
    seed_model, image_processor = make_seed_model(), SeedImageProcessorPil(size={"height": 28, "width": 28})
    extended = tiny_language_model()
    text = OPTForCausalLM.from_pretrained(save_text_model(tmp_path / "text"))
    model, made = open_language_model(tmp_path / "text", seed_model, image_processor, LORA)
    assert (made.boi_token_id, made.image_tokenizer_hash) == (330, seed_model.codes_hash())
    ids = torch.randint(3, 330, (1, 9))
    expected = text(ids).logits[..., :330]
    torch.testing.assert_close(model(input_ids=ids).logits[..., :330], expected, rtol=0, atol=0)

    extended.config.image_tokenizer_hash = "0" * 64
    extended.save_pretrained(tmp_path / "seed")
    processor.save_pretrained(tmp_path / "seed")
    with pytest.raises(ValueError, match="image tokenizer of weights 000000000000"):
        open_language_model(tmp_path / "seed", seed_model, image_processor, LORA)

    model, _ = open_language_model(tmp_path / "text", seed_model, image_processor, LORA, code_embeddings=True)
    assert model.get_base_model().config.code_embeddings
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "text"))
    again, _ = open_language_model(tmp_path / "adapter", seed_model, image_processor, LORA)
    assert again.get_base_model().config.code_embeddings, "a stage that goes on need not ask again"


def test_a_language_model_without_code_embeddings_gets_them(batch, tmp_path):
    seed_model, image_processor = make_seed_model(), SeedImageProcessorPil(size={"height": 28, "width": 28})
    without = tiny_language_model().eval()
    without.config.image_tokenizer_hash = seed_model.codes_hash()
    without.save_pretrained(tmp_path / "seed")
    tiny_processor().save_pretrained(tmp_path / "seed")
    kept, _ = open_language_model(tmp_path / "seed", seed_model, image_processor, LORA)
    assert not kept.get_base_model().config.code_embeddings
    model, _ = open_language_model(tmp_path / "seed", seed_model, image_processor, LORA, code_embeddings=True)
    scores = without(**batch).logits
    torch.testing.assert_close(model.eval()(**batch).logits, scores, rtol=0, atol=0)

    model(**batch).logits.square().mean().backward()
    codes = model.get_base_model().visual_embeddings.modules_to_save["default"].codes.weight
    assert codes.grad.abs().sum() > 0
    codes.data.normal_()
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "seed"))
    save_adapter(kept, tmp_path / "adapter_without", str(tmp_path / "seed"))
    with pytest.raises(ValueError, match="adapter_without was trained without"):
        open_language_model(tmp_path / "adapter_without", seed_model, image_processor, LORA, code_embeddings=True)
    again, _ = open_language_model(tmp_path / "adapter", seed_model, image_processor, LORA)
    torch.testing.assert_close(again.eval()(**batch).logits, model(**batch).logits)
    merged = merge(again)
    merged.save_pretrained(tmp_path / "merged")
    reloaded = SeedOPTForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(reloaded(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-4)
    assert (reloaded(**batch).logits - scores).abs().max() > 0.01


def save_text_model(folder):
    """A stock OPT and its tokenizer."""
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    OPTForCausalLM(OPTConfig(vocab_size=333, word_embed_proj_dim=32, **shape)).save_pretrained(folder)
    tiny_text_tokenizer().save_pretrained(folder)
    return folder


def test_a_repository_whose_processor_is_for_another_model_is_refused(tmp_path):
    tiny_language_model().save_pretrained(tmp_path)
    processor = tiny_processor()
    processor.num_codes = 16
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The language model's num_codes is 32, the processor's 16"):
        open_language_model(tmp_path, make_seed_model(), None, LORA)
