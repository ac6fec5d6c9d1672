"""SeedConfig: the paper's numbers, nested parts, and what it refuses."""

import json

import pytest
from tiny_models import make_tiny_seed_config
from transformers import Blip2VisionConfig, CLIPVisionConfig, EfficientNetConfig

from seed.configuration_seed import SeedConfig, SeedQFormerConfig
from seed.modeling_seed import SeedModel


def test_defaults_are_the_papers_numbers():
    config = SeedConfig()
    vision, qformer, reverse = config.vision_config, config.qformer_config, config.reverse_qformer_config
    assert isinstance(vision, Blip2VisionConfig)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1408, 39, 224, 14)
    assert config.vision_hidden_size == 1408 and config.vision_final_norm_eps == 1e-5
    assert config.num_codes == qformer.num_queries == 32 and qformer.causal
    assert (qformer.hidden_size, qformer.num_hidden_layers, qformer.num_attention_heads) == (768, 12, 12)
    assert (config.codebook_size, config.code_dim) == (8192, 32)
    assert config.decoder_num_layers == 4
    assert reverse.num_queries == 77 and reverse.num_hidden_layers == 4 and not reverse.causal
    assert (config.generation_dim, config.projection_dim) == (768, 256)
    assert config.use_text_branch and config.use_code_branch and not config.has_empty_prompt_embeds


def test_only_blip_2_gets_the_released_norm_epsilon():
    assert make_tiny_seed_config(vision_final_norm_eps=1e-6).vision_final_norm_eps == 1e-6
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = make_tiny_seed_config(vision_config=siglip | {"intermediate_size": 32, "layer_norm_eps": 1e-3})
    assert config.vision_final_norm_eps is None
    assert SeedModel(config).vision_model.post_layernorm.eps == 1e-3


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"qformer_config": {"causal": False, "num_queries": 8}, "use_text_branch": False},
        {"vision_config": {"model_type": "clip_vision_model", "hidden_size": 36}, "vision_feature_layernorm": True},
        {"reverse_qformer_config": {"num_queries": 5, "causal": True}, "quantization_loss_weighting": "standard"},
    ],
)
def test_saved_and_loaded_it_is_the_same(overrides, tmp_path):
    config = make_tiny_seed_config(**overrides)
    config.save_pretrained(tmp_path)
    loaded = SeedConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(loaded.vision_config) is type(config.vision_config)
    assert isinstance(loaded.qformer_config, SeedQFormerConfig)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name, part in overrides.items():
        for key, value in part.items() if isinstance(part, dict) else ():
            assert stored[name][key] == value
            assert getattr(getattr(loaded, name), key) == value


def test_parts_may_be_dicts_or_configs():
    vision = CLIPVisionConfig(hidden_size=48)
    qformer = SeedQFormerConfig(hidden_size=24, num_attention_heads=2, intermediate_size=50)
    config = SeedConfig(vision_config=vision, qformer_config=qformer, decoder_num_heads=2)
    assert config.vision_config is vision and config.vision_hidden_size == 48
    reverse = config.reverse_qformer_config  # takes its shape from the Causal Q-Former
    assert (reverse.hidden_size, reverse.num_attention_heads, reverse.intermediate_size) == (24, 2, 50)
    assert SeedConfig(vision_config=EfficientNetConfig(hidden_dim=320)).vision_hidden_size == 320
    assert SeedConfig(vision_config={"hidden_size": 80}).vision_config.model_type == "blip_2_vision_model"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"qformer_config": {"hidden_size": 50, "num_attention_heads": 4}}, "50.*4 attention heads"),
        ({"decoder_num_heads": 7}, "768.*7 attention heads"),
        ({"codebook_size": 0}, "codebook_size is 0; expected 1 or more"),
        ({"decoder_num_heads": 0}, "decoder_num_heads is 0"),
        ({"qformer_config": {"cross_attention_frequency": -1}}, "cross_attention_frequency is -1"),
        ({"reverse_qformer_config": {"hidden_size": 384}}, "384.*expected 768"),
        ({"quantization_loss_weighting": "new"}, "'new'.*'legacy'.*'standard'"),
        ({"vision_config": {"model_type": "no_such_model"}}, "'no_such_model'.*clip_vision_model"),
        ({"vision_config": {"model_type": "resnet"}}, "'resnet'.*vision_hidden_size"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(values, message):
    with pytest.raises(ValueError, match=message):
        SeedConfig(**values)


@pytest.mark.parametrize("values", [{"codebook_size": "many"}, {"code_dim": 0.5}, {"use_text_branch": "yes"}])
def test_wrong_types_are_refused(values):
    with pytest.raises(Exception, match=next(iter(values))):
        SeedConfig(**values)
