"""BLIP-2's own retrieval model, small and random, converts exactly: transformers' implementation is the reference."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipImageProcessorPil,
    OPTConfig,
)

from seed import SeedForContrastiveLearning, SeedImageProcessorPil, SeedModel
from seed.commands.main import main
from seed.conversion.blip2 import convert_blip2

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "owl"]
CONFIG = {
    "vision_config": {
        "hidden_size": 40,
        "intermediate_size": 70,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 42,
        "initializer_range": 0.2,
    },
    "qformer_config": {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "vocab_size": 12,
        "max_position_embeddings": 20,
        "use_qformer_text_input": True,
        "initializer_range": 0.2,
        "layer_norm_eps": 1e-6,
    },
    "text_config": OPTConfig(
        hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20, word_embed_proj_dim=16
    ).to_dict(),
    "num_query_tokens": 7,
    "image_text_hidden_size": 24,
}


@pytest.fixture(scope="module")
def blip2():
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(Blip2Config(**CONFIG)).eval()
    with torch.no_grad():  # where transformers begins with zeros and ones, a mix-up would not be seen
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or name.endswith("bias") or name == "query_tokens":
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.vision_model.post_layernorm.eps = 1e-5  # as in LAVIS
    return model


@pytest.fixture(scope="module")
def source(blip2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip2-itm")
    blip2.save_pretrained(folder, max_shard_size="100KB")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = BertTokenizer(vocab=vocabulary)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "blip2"
    assert main(["convert", "blip2", "--model", str(source), "--output", str(output)]) == 0
    return output


def inputs():
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, 5:] = 0
    return (
        torch.randn(3, 3, 42, 42, generator=generator),
        torch.randint(1, 12, (3, 9), generator=generator),
        mask,
    )


def test_features_and_matching_equal_blip2s(blip2, source, converted):
    assert len(list(source.glob("model-*.safetensors"))) > 1  # shards
    model = SeedModel.from_pretrained(converted)
    pixel_values, input_ids, mask = inputs()
    with torch.no_grad():
        expected = blip2(pixel_values, input_ids, mask)
        torch.testing.assert_close(model.get_image_features(pixel_values), expected.image_embeds)
        torch.testing.assert_close(model.get_text_features(input_ids, mask), expected.text_embeds)
        # Queries and words together, as stage I's teacher and BLIP-2's matching head read them.
        embedded = blip2.embeddings(input_ids=input_ids, query_embeds=blip2.query_tokens.expand(3, -1, -1))
        vision_features = blip2.vision_model(pixel_values).last_hidden_state
        together = blip2.qformer(
            query_embeds=embedded,
            query_length=7,
            attention_mask=torch.cat([torch.ones(3, 7, dtype=torch.long), mask], dim=1),
            encoder_hidden_states=vision_features,
        ).last_hidden_state
        ours = model.qformer(model.get_vision_features(pixel_values), input_ids, mask)
    real = torch.cat([torch.ones(3, 7), mask], dim=1).bool()
    torch.testing.assert_close(ours[real], together[real], rtol=1e-4, atol=1e-5)


def test_stage_one_begins_from_it(converted):
    """What examples/train_stage1.py loads: everything but its own temperature is there, and the queries turn causal."""
    config = SeedModel.config_class.from_pretrained(converted, qformer_config={"causal": True})
    head, info = SeedForContrastiveLearning.from_pretrained(
        converted, config=config, new_modules=("temperature",), output_loading_info=True
    )
    assert info["missing_keys"] == {"temperature"} and not info["unexpected_keys"]
    assert head.model.config.qformer_config.causal and head.model.config.qformer_config.num_queries == 7
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer("a red owl").input_ids == [2, 5, 6, 7, 3] and tokenizer.convert_tokens_to_ids("[DEC]") == 8
    assert SeedImageProcessorPil.from_pretrained(converted).size == {"height": 42, "width": 42}


def test_precision_is_what_is_asked_for(source, tmp_path):
    convert_blip2(source, tmp_path / "half", dtype=torch.float16)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == config["vision_config"]["dtype"] == "float16"
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_a_language_models_blip2_is_refused(tmp_path):
    model = Blip2ForConditionalGeneration(Blip2Config(**CONFIG | {"qformer_config": {"hidden_size": 48}}))
    model.save_pretrained(tmp_path / "opt")
    with pytest.raises(ValueError, match="no text branch.*blip2-itm-vit-g"):
        convert_blip2(tmp_path / "opt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def broken(source, folder, change):
    """The source in one file, with its tensors changed."""
    folder.mkdir()
    tensors = {}
    for file in source.glob("*"):
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        elif not file.name.endswith("index.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_tensors_that_do_not_make_it_up_are_named(source, tmp_path):
    def change(tensors):
        del tensors["qformer.encoder.layer.4.output.dense.bias"]
        tensors["query_tokens"] = torch.zeros(1, 8, 48)
        tensors["surplus.weight"] = torch.zeros(2)

    with pytest.raises(ValueError) as caught:
        convert_blip2(broken(source, tmp_path / "in", change), tmp_path / "out")
    text = str(caught.value)
    assert "1 missing:\n  qformer.encoder.layer.4.output.dense.bias" in text
    assert "query_tokens is (1, 8, 48), expected (1, 7, 48)" in text
    assert "1 of no known use:\n  surplus.weight" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), ValueError, "cannot be read.*truncated"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "clip"})),
            ValueError,
            "type 'clip'; expected BLIP-2's",
        ),
    ],
)
def test_what_is_no_whole_repository_is_refused(source, tmp_path, damage, error, message):
    folder = broken(source, tmp_path / "in", lambda tensors: None)
    damage(folder)
    with pytest.raises(error, match=message):
        convert_blip2(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_more_words_than_the_text_branch_reads_is_refused(source, tmp_path):
    def change(tensors):
        tensors["embeddings.word_embeddings.weight"] = torch.zeros(8, 48)

    with pytest.raises(ValueError, match="has 9 entries, the text branch 8 rows"):
        convert_blip2(broken(source, tmp_path / "in", change), tmp_path / "out")


def test_the_processors_image_token_needs_no_row(source, tmp_path):
    """transformers' processor adds it to the tokenizer; older checkpoints' text branch was not made longer for it."""
    words = "embeddings.word_embeddings.weight"
    folder = broken(source, tmp_path / "in", lambda tensors: tensors.update({words: tensors[words][:9].clone()}))
    processor = Blip2Processor(BlipImageProcessorPil(), AutoTokenizer.from_pretrained(folder), num_query_tokens=7)
    processor.save_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == 10
    assert convert_blip2(folder, tmp_path / "out").qformer_config.vocab_size == 9


def test_an_output_that_is_something_else_stays(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        convert_blip2(source, tmp_path / "out")
    with pytest.raises(FileExistsError, match="no SEED model|something else"):
        convert_blip2(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
