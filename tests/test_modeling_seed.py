"""SeedModel's behaviour. Its numbers are checked against an independent SEED-1 in conversion/test_seed1.py."""

import copy
import os
import shutil

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_seed_config

from seed.configuration_seed import SeedConfig, SeedQFormerConfig
from seed.modeling_seed import SeedModel
from seed.modeling_seed_qformer import SeedQFormer

IMPLEMENTATIONS = ["eager", "sdpa"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@torch.no_grad()
def randomize(model, seed=0):
    """Give weights the size that training gives them, so that what one position sees of another shows in numbers."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
        elif parameter.dim() == 2:
            parameter.copy_(noise * (2 if "q_proj" in name or "k_proj" in name else 1) * parameter.shape[1] ** -0.5)
        else:
            parameter.copy_(0.3 * noise)
    return model


def make_model(attn_implementation="sdpa", **overrides):
    config = make_tiny_seed_config(**overrides)
    config._attn_implementation = attn_implementation
    return randomize(SeedModel(config).eval())


@pytest.fixture(scope="module")
def model():
    return make_model()


def pictures(count=2, size=28, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def words(count=2, length=7, seed=1):
    return torch.randint(1, 100, (count, length), generator=torch.Generator().manual_seed(seed))


def some_codes(count=2, seed=1):
    return torch.randint(0, 64, (count, 32), generator=torch.Generator().manual_seed(seed))


def changed(before, after):
    """Return which positions of `(batch, positions, dim)` differ, `(positions,)`."""
    return ((before - after).abs().amax(dim=(0, 2)) > 1e-5).tolist()


# Masks, by perturbation: what changes when one position changes ------------------------------------------------------


@torch.no_grad()
def perturb_query(qformer, position, run):
    before = run()
    kept = qformer.query_tokens.clone()
    qformer.query_tokens[:, position] += torch.randn(kept.shape[-1])
    after = run()
    qformer.query_tokens.copy_(kept)
    return changed(before, after)


def test_the_vision_model_may_have_an_attention_of_its_own(tmp_path):
    """The ViT supports FlashAttention, for example, which cannot read the Q-Former's masks."""
    make_model().save_pretrained(tmp_path)
    model = SeedModel.from_pretrained(tmp_path, attn_implementation={"vision_config": "eager"})
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.qformer.config._attn_implementation == model.reverse_qformer.config._attn_implementation == "sdpa"
    assert type(model.vision_model)._supports_flash_attn
    with pytest.raises(ValueError, match="Flash"):
        SeedModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_queries", [1, 8, 32, 77])
@pytest.mark.parametrize("causal", [True, False])
def test_query_k_changes_no_earlier_embedding(attn_implementation, num_queries, causal):
    """`causal` decides, the number of queries never does."""
    model = make_model(attn_implementation, qformer_config={"causal": causal, "num_queries": num_queries})
    for k in sorted({0, num_queries // 2, num_queries - 1}):
        seen = perturb_query(model.qformer, k, lambda: model.get_causal_embeddings(pictures()))
        assert seen == [causal is False or position >= k for position in range(num_queries)], k


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_queries", [32, 77])
def test_reverse_queries_see_each_other(attn_implementation, num_queries):
    model = make_model(attn_implementation, reverse_qformer_config={"num_queries": num_queries})
    for k in (0, num_queries // 2, num_queries - 1):
        seen = perturb_query(model.reverse_qformer, k, lambda: model.decode_image_tokens(some_codes()))
        assert all(seen) and len(seen) == num_queries


def qformer_of_one_layer(attn_implementation, causal):
    """Return a Q-Former of one layer, because over two layers a query sees a later one through the words."""
    config = SeedQFormerConfig(
        num_queries=5,
        causal=causal,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=100,
        max_position_embeddings=16,
    )
    config._attn_implementation = attn_implementation
    return randomize(SeedQFormer(config, 12, has_text_branch=True).eval())


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_with_text_queries_stay_causal_and_see_every_word(attn_implementation, causal, padded):
    qformer = qformer_of_one_layer(attn_implementation, causal)
    features, ids = torch.randn(2, 6, 12), words()
    mask = torch.tensor([[1] * 5 + [0] * 2] * 2) if padded else None
    for k in range(5):
        seen = perturb_query(qformer, k, lambda: qformer(features, ids, mask))
        assert seen == [not causal or position >= k for position in range(5)] + [True] * 7
    for k in range(7):
        other = ids.clone()
        other[:, k] = (ids[:, k] + 1) % 100
        seen = changed(qformer(features, ids, mask), qformer(features, other, mask))
        if padded and k >= 5:  # a padded word changes itself at most
            assert not any(seen[:10])
        else:
            assert all(seen)


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_causal_text_is_for_captioning(attn_implementation, causal):
    """Queries see no word, a word sees all queries and the words up to itself, in a model of several layers."""
    model = make_model(attn_implementation, qformer_config={"causal": causal, "num_queries": 5})
    features, ids = model.get_vision_features(pictures()), words()
    run = lambda: model.qformer(features, ids, causal_text=True)  # noqa: E731
    for k in (0, 2, 4):
        seen = perturb_query(model.qformer, k, run)
        assert seen == [not causal or position >= k for position in range(5)] + [True] * 7
    for k in (0, 3, 6):
        other = ids.clone()
        other[:, k] = (ids[:, k] + 1) % 100
        seen = changed(run(), model.qformer(features, other, causal_text=True))
        assert seen == [False] * 5 + [position >= k for position in range(7)]


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_text_alone_is_bidirectional_and_ignores_padding(attn_implementation):
    model = make_model(attn_implementation)
    ids = words(1)
    for k in range(7):
        other = ids.clone()
        other[:, k] = (ids[:, k] + 1) % 100
        assert all(changed(model.qformer(input_ids=ids), model.qformer(input_ids=other)))

    expected = model.get_text_features(ids)
    assert torch.allclose(expected.norm(dim=-1), torch.ones(1))
    padded = torch.cat([ids, torch.tensor([[0, 9, 0]])], dim=1)
    mask = torch.tensor([[1] * 7 + [0] * 3])
    torch.testing.assert_close(model.get_text_features(padded, mask), expected, rtol=0, atol=1e-6)
    assert (model.get_text_features(padded) - expected).abs().max() > 1e-3


# Numbers that must agree ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_eager_equals_sdpa():
    eager, sdpa = make_model("eager"), make_model("sdpa")
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    features = sdpa.get_vision_features(pictures())
    runs = {
        "all": lambda m: m(pictures()).generation_embeddings,
        "causal": lambda m: m.get_causal_embeddings(pictures()),
        "prefix": lambda m: m.decode_image_tokens(some_codes(), 5),
        "text": lambda m: m.get_text_features(words(), mask),
        "both": lambda m: m.qformer(features, words(), mask)[:, :36],
        "captioning": lambda m: m.qformer(features, words(), mask, causal_text=True)[:, :36],
    }
    assert eager.qformer.config._attn_implementation == "eager"
    assert sdpa.qformer.config._attn_implementation == "sdpa"
    for name, run in runs.items():
        torch.testing.assert_close(run(eager), run(sdpa), rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@torch.no_grad()
def test_batch_equals_single(model):
    images = pictures(6)
    embeddings = model.get_causal_embeddings(images)
    codes = model.get_image_tokens(images)
    generated = model.decode_image_tokens(codes)
    distances = torch.cdist(model.encode_layer(embeddings).double(), model.quantizer.codebook.weight.double())
    nearest = distances.topk(2, largest=False).values
    near_tie = nearest[..., 1] - nearest[..., 0] < 1e-5
    assert near_tie.sum() == 0, "this model and these pictures have no near-ties, so that every code must agree"
    assert len(codes.unique()) > 8
    for i in range(6):
        one = images[i : i + 1]
        torch.testing.assert_close(model.get_causal_embeddings(one), embeddings[i : i + 1], rtol=0, atol=1e-5)
        assert torch.equal(model.get_image_tokens(one), codes[i : i + 1])
        torch.testing.assert_close(model.decode_image_tokens(codes[i : i + 1]), generated[i : i + 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_way_in_gives_the_same(model):
    """Pictures, cached vision features, causal embeddings: one path, entered at several points."""
    images = pictures()
    features = model.get_vision_features(images)
    embeddings = model.get_causal_embeddings(vision_features=features)
    codes = model.get_image_tokens(images)
    assert torch.equal(model.get_image_tokens(vision_features=features), codes)
    assert torch.equal(model.get_image_tokens(causal_embeddings=embeddings), codes)
    expected = model.get_image_features(images)
    assert expected.shape == (2, 16)
    torch.testing.assert_close(model.get_image_features(vision_features=features), expected)
    torch.testing.assert_close(model.get_image_features(causal_embeddings=embeddings), expected)
    reconstructed = model.reconstruct_causal_embeddings(codes)
    torch.testing.assert_close(
        model.get_image_features(codes=codes), model.get_image_features(causal_embeddings=reconstructed)
    )
    output = model(images)
    assert torch.equal(output.codes, codes)
    assert output.causal_embeddings.shape == (2, 32, 48)
    assert output.generation_embeddings.shape == (2, 77, 40)
    torch.testing.assert_close(model(codes=codes).generation_embeddings, output.generation_embeddings)


@torch.no_grad()
def test_bidirectional_image_features_are_one_per_query():
    features = make_model(qformer_config={"causal": False}).get_image_features(pictures())
    assert features.shape == (2, 32, 16)
    assert torch.allclose(features.norm(dim=-1), torch.ones(2, 32))


# Prefixes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_prefix_equals_masking_and_sees_no_later_code(attn_implementation):
    model = make_model(attn_implementation)
    codes, other = some_codes(), some_codes(seed=2)
    for k in (1, 5, 31, 32):
        prefix = model.decode_image_tokens(codes, k)
        mask = (torch.arange(32) < k).expand(2, -1)
        masked = model.generate_embeddings(model.quantizer.code_vectors(codes), mask)
        torch.testing.assert_close(prefix, masked, rtol=0, atol=1e-5)
        later = torch.cat([codes[:, :k], other[:, k:]], dim=1)
        assert torch.equal(model.decode_image_tokens(later, k), prefix)
        earlier = codes.clone()
        earlier[:, k - 1] = (codes[:, k - 1] + 1) % 64
        assert (model.decode_image_tokens(earlier, k) - prefix).abs().max() > 1e-3
    torch.testing.assert_close(model.decode_image_tokens(codes, 32), model.decode_image_tokens(codes))

    # Rows of one batch may have prefixes of different lengths (stage II samples them).
    lengths = torch.tensor([3, 20])
    mixed = model.generate_embeddings(model.quantizer.code_vectors(codes), torch.arange(32) < lengths[:, None])
    for row, k in enumerate(lengths.tolist()):
        torch.testing.assert_close(mixed[row], model.decode_image_tokens(codes[row : row + 1], k)[0], rtol=0, atol=1e-5)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda codes: codes.index_fill(1, torch.tensor([3]), 64), ValueError, r"Code 64 is out of range.*0 \.\. 63"),
        (lambda codes: codes.index_fill(1, torch.tensor([3]), -1), ValueError, r"Code -1 is out of range"),
        (lambda codes: codes.float(), TypeError, "float32"),
        (lambda codes: codes.to(torch.uint8), TypeError, "uint8"),
        (lambda codes: codes > 3, TypeError, "bool"),
        (lambda codes: codes[:, :31], ValueError, r"\(2, 31\).*\(batch, 32\).*prefix_length"),
        (lambda codes: codes[0], ValueError, r"\(32,\).*\(batch, 32\)"),
    ],
)
def test_wrong_codes(model, change, error, message):
    for use in (model.decode_image_tokens, model.reconstruct_causal_embeddings, lambda codes: model(codes=codes)):
        with pytest.raises(error, match=message):
            use(change(some_codes()))
    with pytest.raises(error, match=message):
        model.get_image_features(codes=change(some_codes()))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_other_integers_are_codes_too(model, dtype):
    with torch.no_grad():
        expected = model.decode_image_tokens(some_codes())
        assert torch.equal(model.decode_image_tokens(some_codes().to(dtype)), expected)


@pytest.mark.parametrize("prefix_length", [0, -1, 33])
def test_wrong_prefix(model, prefix_length):
    with pytest.raises(ValueError, match=rf"prefix_length is {prefix_length}; expected 1 \.\. 32"):
        model.decode_image_tokens(some_codes(), prefix_length)


def test_a_bad_code_is_found_beyond_the_prefix(model):
    codes = some_codes()
    codes[0, 31] = 999
    with pytest.raises(ValueError, match="999"):
        model.decode_image_tokens(codes, 2)


def test_wrong_arguments(model):
    with pytest.raises(ValueError, match="exactly one of pixel_values, codes; got none"):
        model()
    with pytest.raises(ValueError, match="got pixel_values, codes"):
        model(pictures(), some_codes())
    with pytest.raises(ValueError, match="exactly one"):
        model.get_image_tokens(pictures(), causal_embeddings=torch.zeros(2, 32, 48))
    with pytest.raises(ValueError, match="exactly one"):
        model.get_image_features(pictures(), some_codes())
    with pytest.raises(ValueError, match="33 tokens.*at most 32"):
        model.get_text_features(words(length=33))
    with pytest.raises(ValueError, match=r"\(1, 3, 40\).*\(1, 77, 40\)"):
        model.set_empty_prompt_embeds(torch.zeros(1, 3, 40))


# Saving and loading --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    model.save_pretrained(folder)
    return folder


def test_reload_gives_equal_results(model, folder):
    reloaded, info = SeedModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert reloaded.config.to_dict() == SeedModel.from_pretrained(folder).config.to_dict()
    with torch.no_grad():
        assert torch.equal(reloaded(pictures()).generation_embeddings, model(pictures()).generation_embeddings)
        assert torch.equal(reloaded.get_text_features(words()), model.get_text_features(words()))
    assert reloaded.vision_model.post_layernorm.eps == 1e-5


def test_branches_that_are_not_wanted_are_not_loaded(model, folder, tmp_path):
    expected = model(pictures())
    tokenizer, info = SeedModel.from_pretrained(folder, use_text_branch=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    gone = {name for name in model.state_dict() if name not in tokenizer.state_dict()}
    assert gone == {
        name
        for name in model.state_dict()
        if name.startswith(("qformer.word_emb", "qformer.position_emb", "vision_projection", "text_projection"))
        or ".text_mlp" in name
    }
    assert torch.equal(tokenizer.get_image_tokens(pictures()), expected.codes)
    with pytest.raises(ValueError, match="use_text_branch=True"):
        tokenizer.get_text_features(words())
    with pytest.raises(ValueError, match="use_text_branch=True"):
        tokenizer.get_image_features(pictures())

    stage1, info = SeedModel.from_pretrained(folder, use_code_branch=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    code_parts = ("encode", "quantizer", "decode", "reconstruction", "generation", "reverse")
    assert not any(name.startswith(code_parts) for name in stage1.state_dict())
    assert torch.equal(stage1.get_causal_embeddings(pictures()), expected.causal_embeddings)
    for use in (lambda: stage1.get_image_tokens(pictures()), lambda: stage1.decode_image_tokens(some_codes())):
        with pytest.raises(ValueError, match="no codebook"):
            use()

    # What was left out stays out of what is saved, and asking for it later is an error.
    tokenizer.save_pretrained(tmp_path)
    assert not SeedModel.from_pretrained(tmp_path).config.use_text_branch
    with pytest.raises(ValueError, match=r"lacks \d+ tensors.*qformer\."):
        SeedModel.from_pretrained(tmp_path, use_text_branch=True)


def test_a_stage_may_name_what_it_adds(folder, tmp_path):
    SeedModel.from_pretrained(folder, use_code_branch=False).save_pretrained(tmp_path)
    new = ("encode_layer", "quantizer", "decode_layer", "reconstruction_decoder", "generation", "reverse_qformer")
    with pytest.raises(ValueError, match="decode_layer.*new_modules"):
        SeedModel.from_pretrained(tmp_path, use_code_branch=True, new_modules=new[:2])
    model = SeedModel.from_pretrained(tmp_path, use_code_branch=True, new_modules=new)
    codebook = model.quantizer.codebook.weight
    assert codebook.abs().max() <= 1 / 64 and codebook.std() > 0.5 / 64
    for positions in (model.reconstruction_decoder.position_embeddings, model.reverse_qformer.query_tokens):
        assert 0.01 < positions.std() < 0.03
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with pytest.raises(ValueError, match="decode_layer"):  # a text is one prefix, not one per letter
        SeedModel.from_pretrained(tmp_path, use_code_branch=True, new_modules="encode_layer")


def test_empty_prompt_travels_with_the_model(folder, tmp_path):
    model = SeedModel.from_pretrained(folder)
    embeds = torch.randn(1, 77, 40)
    model.set_empty_prompt_embeds(embeds)
    model.save_pretrained(tmp_path)
    reloaded, info = SeedModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(reloaded.empty_prompt_embeds, embeds)


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "broken")


def test_missing_tensor_is_an_error_that_names_it(broken):
    tensors = load_file(broken / "model.safetensors")
    del tensors["qformer.layers.1.query_mlp.fc1.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*qformer\.layers\.1\.query_mlp\.fc1\.weight.*again"):
        SeedModel.from_pretrained(broken)


def test_tensor_of_another_shape_is_an_error_that_names_it(folder):
    with pytest.raises(ValueError, match=r"'quantizer.codebook.weight' of \(64, 8\) instead of \(32, 8\)"):
        SeedModel.from_pretrained(folder, codebook_size=32)
    model = SeedModel.from_pretrained(folder, codebook_size=32, ignore_mismatched_sizes=True)
    assert model.quantizer.codebook.weight.abs().max() <= 1 / 32


@pytest.mark.parametrize("kept", [0.5, 0.99, 0.0])
def test_truncated_weights(broken, kept):
    path = broken / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(OSError, match=r"broken.*truncated or damaged.*again"):
        SeedModel.from_pretrained(broken)


def test_missing_files(broken, tmp_path):
    (broken / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        SeedModel.from_pretrained(broken)
    with pytest.raises(OSError, match="nowhere"):
        SeedModel.from_pretrained(tmp_path / "nowhere")


# Precision -----------------------------------------------------------------------------------------------------------


def test_codes_of_what_is_not_finite_are_refused(model):
    embeddings = torch.randn(2, model.config.num_codes, model.config.qformer_config.hidden_size)
    embeddings[1, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="not all finite, in torch.float32.*Use bfloat16 or float32"):
        model.get_image_tokens(causal_embeddings=embeddings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_finite_and_quantizes_in_float32(model, folder, dtype):
    half = SeedModel.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    output = half(pictures())
    assert output.generation_embeddings.dtype == dtype
    assert output.generation_embeddings.isfinite().all()
    assert half.get_text_features(words()).isfinite().all()
    assert half.decode_image_tokens(output.codes, 3).isfinite().all()
    # The codes are the nearest ones of the half-precision vectors, exactly: no distance was rounded to half.
    vectors = half.encode_layer(output.causal_embeddings)
    nearest = torch.cdist(vectors.double(), half.quantizer.codebook.weight.double()).argmin(dim=-1)
    assert torch.equal(output.codes, nearest)
    error = (output.causal_embeddings.float() - model.get_causal_embeddings(pictures())).abs().mean()
    assert error < (0.1 if dtype == torch.bfloat16 else 0.02)


# Training ------------------------------------------------------------------------------------------------------------


def training_loss(model):
    """Touch every trained part: straight-through codes into both decoders, and the contrastive space."""
    embeddings = model.get_causal_embeddings(pictures())
    quantized = model.quantizer(model.encode_layer(embeddings))
    generated = model.generate_embeddings(quantized.quantized)
    reconstructed = model.reconstruction_decoder(model.decode_layer(quantized.quantized))
    images = model.get_image_features(causal_embeddings=embeddings)
    texts = model.get_text_features(words())
    weights = torch.randn(generated.shape, generator=torch.Generator().manual_seed(3))
    return (
        (generated * weights).mean()
        + reconstructed.square().mean()
        + quantized.loss
        - (images @ texts.t()).diagonal().mean()
    )


@pytest.mark.parametrize("loaded", [False, True])
def test_gradients_reach_what_trains_and_not_the_vision_model(model, folder, loaded):
    fresh = SeedModel.from_pretrained(folder) if loaded else make_model()
    fresh.train()
    training_loss(fresh).backward()
    for name, parameter in fresh.named_parameters():
        frozen = name.startswith("vision_model.")
        assert parameter.requires_grad is not frozen, name
        assert (parameter.grad is None) is frozen, name
        assert frozen or parameter.grad.isfinite().all(), name
        # A key bias moves all scores of a row alike, so its gradient is zero but for rounding.
        assert frozen or name.endswith("k_proj.bias") or parameter.grad.abs().max() > 0, name


def test_vision_model_stays_in_evaluation_mode():
    model = make_model(vision_config={"model_type": "efficientnet", "image_size": 32, **TINY_EFFICIENTNET})
    model.train()
    assert model.qformer.training and not any(module.training for module in model.vision_model.modules())
    before = {name: buffer.clone() for name, buffer in model.vision_model.named_buffers()}
    first, second = model.get_vision_features(pictures(size=32)), model.get_vision_features(pictures(size=32))
    assert torch.equal(first, second)
    for name, buffer in model.vision_model.named_buffers():
        assert torch.equal(buffer, before[name]), f"batch statistics moved: {name}"
    assert not model.eval().training


@torch.no_grad()
def test_a_new_model_leaves_the_statistics_of_its_vision_model_alone():
    """A stage that creates the model computes features before anything calls `train` or `eval`."""
    model = SeedModel(
        make_tiny_seed_config(vision_config={"model_type": "efficientnet", "image_size": 32, **TINY_EFFICIENTNET})
    )
    before = copy.deepcopy(model.vision_model.state_dict())
    pixel_values = torch.randn(2, 3, 32, 32)
    features = model.get_vision_features(pixel_values)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.vision_model.state_dict().items())
    assert torch.equal(model.eval().get_vision_features(pixel_values), features)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # its new name is not in 5.17
def test_gradient_checkpointing_changes_no_gradient():
    overrides = {"qformer_config": NO_DROPOUT, "reverse_qformer_config": {"num_hidden_layers": 2, **NO_DROPOUT}}
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = make_model(**overrides).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        count = []
        for layer in (model.qformer.layers[1].query_mlp, model.generation_decoder.blocks[0].mlp):
            layer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        training_loss(model).backward()
        calls.append(len(count))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert calls[1] == 2 * calls[0], "checkpointing has to compute the layers twice"
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, name=name: f"{name}: {m}")


# Other vision models -------------------------------------------------------------------------------------------------

TINY_EFFICIENTNET = {
    "hidden_dim": 1280,
    "in_channels": [32, 16],
    "out_channels": [16, 16],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 6],
    "depthwise_padding": [],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
}
TRANSFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.mark.parametrize(
    ("vision_config", "patches", "width"),
    [
        ({"model_type": "clip_vision_model", **TRANSFORMER}, 5, 32),
        ({"model_type": "siglip_vision_model", **TRANSFORMER}, 4, 32),
        ({"model_type": "dinov2", **TRANSFORMER}, 5, 32),
        ({"model_type": "efficientnet", "image_size": 32, **TINY_EFFICIENTNET}, 64, 1280),
    ],
)
@pytest.mark.parametrize("layernorm", [False, True])
@torch.no_grad()
def test_any_vision_model_serves_by_its_config(vision_config, patches, width, layernorm, tmp_path):
    size = vision_config["image_size"]
    overrides = {"vision_config": vision_config, "vision_feature_layernorm": layernorm}
    model = make_model(**overrides)
    images = pictures(size=size)
    features = model.get_vision_features(images)
    raw = model.vision_model(images).last_hidden_state
    if raw.dim() == 4:  # (batch, dim, height, width): positions in reading order
        raw = torch.stack([raw[:, :, y, x] for y in range(raw.shape[2]) for x in range(raw.shape[3])], dim=1)
    torch.testing.assert_close(features, raw, rtol=1e-4, atol=1e-4)  # other memory layouts sum in another order
    assert features.shape == (2, patches, width)
    assert hasattr(model, "vision_layernorm") is layernorm
    assert model(images).generation_embeddings.shape == (2, 77, 40)
    model.save_pretrained(tmp_path)
    reloaded, info = SeedModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(reloaded.vision_model) is type(model.vision_model)
    assert torch.equal(reloaded(images).generation_embeddings, model(images).generation_embeddings)


def test_parameter_count_of_the_paper():
    """1154 M in the released model without text parts, 986 M of them in the ViT."""
    with torch.device("meta"):
        model = SeedModel(SeedConfig(use_text_branch=False))
    assert round(sum(p.numel() for p in model.vision_model.parameters()) / 1e6) == 986
    # The released code that tokenises and draws has no reconstruction decoder.
    unused = sum(p.numel() for p in model.reconstruction_decoder.parameters())
    assert round((model.num_parameters() - unused) / 1e6) == 1154


# What transformers' and accelerate's users expect --------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
def test_hidden_states_and_attentions_of_the_causal_qformer(attn_implementation):
    model = make_model(attn_implementation)
    output = model(pictures(), output_hidden_states=True)
    layers = model.config.qformer_config.num_hidden_layers
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 32, 48)] * (layers + 1)
    assert torch.equal(output.hidden_states[-1], output.causal_embeddings)
    assert model(pictures()).hidden_states is None
    if attn_implementation == "eager":
        attentions = model(pictures(), output_attentions=True).attentions
        assert [tuple(weights.shape) for weights in attentions] == [(2, 4, 32, 32)] * layers
        for weights in attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 32))
            assert weights.triu(1).abs().max() == 0, "no query sees a later one"


def test_offloaded_models_make_the_same_codes(model):
    codes = model.get_image_tokens(pictures())
    offloaded = cpu_offload(copy.deepcopy(model))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(offloaded(pictures()).codes, codes)


def test_a_model_from_a_config_and_weights_in_memory(model):
    again = SeedModel.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert torch.equal(again.get_image_tokens(pictures()), model.get_image_tokens(pictures()))
