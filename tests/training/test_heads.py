"""The training heads against computations written out here."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from seed import SeedForContrastiveLearning, SeedForImageTextPretraining, SeedForQuantization, SeedModel
from seed.modeling_seed_heads import gather_with_gradient


def batch(config, size=6):
    generator = torch.Generator().manual_seed(0)
    image_size = config.vision_config.image_size
    return {
        "pixel_values": torch.randn(size, 3, image_size, image_size, generator=generator),
        "input_ids": torch.randint(1, 90, (size, 5), generator=generator),
        "attention_mask": torch.ones(size, 5, dtype=torch.long),
        "groups": torch.arange(size) // 2,
    }


def test_stage_one_loss_is_the_smoothed_cross_entropy_both_ways(config):
    head = SeedForContrastiveLearning(config).eval()
    inputs = batch(config)
    with torch.no_grad():
        loss = float(head(**inputs).loss)
        images = head.model.get_image_features(inputs["pixel_values"]).double().numpy()
        texts = head.model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).double().numpy()
    groups = inputs["groups"].numpy()
    same = (groups[:, None] == groups[None]).astype(float)
    targets = 0.9 * same / same.sum(1, keepdims=True) + 0.1 / len(groups)

    def cross_entropy(logits):
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -(targets * log_probabilities).sum(1).mean()

    similarity = images @ texts.T / 0.07
    assert loss == pytest.approx((cross_entropy(similarity) + cross_entropy(similarity.T)) / 2, rel=1e-5)


def test_stage_one_trains_the_qformer_and_not_the_vision_model(config):
    head = SeedForContrastiveLearning(config).train()
    head(**batch(config)).loss.backward()
    touched = {name for name, parameter in head.named_parameters() if parameter.grad is not None}
    assert not any("vision_model" in name for name in touched)
    assert {"temperature", "model.qformer.query_tokens", "model.qformer.word_embeddings.weight"} <= touched
    assert not head.model.vision_model.training


def test_negatives_are_drawn_by_similarity_over_the_temperature(config, monkeypatch):
    """BLIP-2 draws in proportion to the probability that the contrastive loss gives the pair."""
    head, inputs, drawn = SeedForImageTextPretraining(config).eval(), batch(config), []
    multinomial = torch.multinomial
    monkeypatch.setattr(
        torch, "multinomial", lambda weights, *rest: drawn.append(weights) or multinomial(weights, *rest)
    )
    with torch.no_grad():
        head(**inputs)
        images = head.model.get_image_features(inputs["pixel_values"]).double().numpy()
        texts = head.model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).double().numpy()
    expected = np.exp(images @ texts.T / 0.07)
    expected[inputs["groups"].numpy()[:, None] == inputs["groups"].numpy()[None]] = 0
    expected /= expected.sum(1, keepdims=True)
    found = drawn[0].double().numpy()
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), expected, atol=1e-5)


def test_pretraining_adds_matching_and_captioning(config):
    config.qformer_config.causal = False
    head = SeedForImageTextPretraining(config).eval()
    output = head(**batch(config))
    terms = output.losses
    assert float(output.loss) == pytest.approx(
        float(terms["contrastive"] + terms["matching"] + terms["captioning"]), rel=1e-5
    )
    # untrained, each loss is near that of guessing
    assert float(terms["matching"]) == pytest.approx(np.log(2), abs=0.3)
    assert float(terms["captioning"]) == pytest.approx(np.log(config.qformer_config.vocab_size), rel=0.3)


def stage_two(config, **settings):
    head = SeedForQuantization(config)
    for name, value in settings.items():
        setattr(head, name, value)
    features = torch.randn(8, 77, config.generation_dim, generator=torch.Generator().manual_seed(1))
    return head, {"pixel_values": batch(config, 8)["pixel_values"], "text_features": features}


def test_stage_two_loss_has_the_released_weights(config):
    head, inputs = stage_two(config)
    head.eval()
    output = head(**inputs)
    model = head.model
    with torch.no_grad():
        causal = model.get_causal_embeddings(inputs["pixel_values"])
        vectors = model.encode_layer(causal)
        codes = torch.cdist(vectors.double(), model.quantizer.codebook.weight.double()).argmin(-1)
        code_vectors = model.quantizer.codebook.weight[codes]
        quantization = 1.25 * (code_vectors - vectors).square().mean()
        rebuilt = model.reconstruct_causal_embeddings(codes)
        cosine = 1 - torch.nn.functional.cosine_similarity(rebuilt, causal, dim=-1).mean()
        mse = (model.decode_image_tokens(codes) - inputs["text_features"]).square().mean()
    assert torch.equal(output.codes, codes)
    assert float(output.loss) == pytest.approx(float(5 * quantization + 0.5 * mse + 2 * cosine), rel=1e-4)


def test_stage_two_changes_nothing_of_stage_one(config):
    head, inputs = stage_two(config, prefix_probability=0.5)
    head.train()
    head(**inputs).loss.backward()
    frozen = ("vision_model", "vision_layernorm", "qformer.", "vision_projection", "text_projection")
    for name, parameter in head.named_parameters():
        name = name.removeprefix("model.")
        if name.startswith(frozen):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_stage_two_wants_the_decoder_it_trains(config):
    config.use_reconstruction_decoder = False
    with pytest.raises(ValueError, match="use_reconstruction_decoder=True"):
        SeedForQuantization(config)


def test_revivals_count_forward_passes_and_not_evaluations(config):
    head, inputs = stage_two(config, revival_interval=2)
    for training, expected in ((True, 1), (False, 1), (True, 2), (True, 3)):
        head.train(training)
        head(**inputs)  # no optimiser steps: as within one step of gradient accumulation
        assert int(head.training_steps) == expected
        hits = len(inputs["pixel_values"]) * config.num_codes
        # passes 1 and 2 are counted together; before the third the count starts again
        assert int(head.code_counts.sum()) == hits * {1: 1, 2: 2, 3: 1}[expected]


class Operations(TorchDispatchMode):
    """A record of the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_training_step_waits_for_no_device_and_counts_codes_once(config):
    head, inputs = stage_two(config)
    with Operations() as operations:
        output = head.train()(**inputs)
    assert not {"_local_scalar_dense", "bincount", "nonzero"} & set(operations.names)  # they wait for their result
    assert operations.names.count("index_add_") == 1
    assert torch.equal(output.code_counts, torch.bincount(output.codes.flatten(), minlength=config.codebook_size))
    assert not head.code_counts.any() and not head.training_steps


def test_cached_embeddings_give_the_same_stage_two_loss(config):
    head, inputs = stage_two(config)
    head.eval()
    expected = head(**inputs)
    causal = head.model.get_causal_embeddings(inputs.pop("pixel_values"))
    found = head(causal_embeddings=causal, **inputs)
    torch.testing.assert_close(found.loss, expected.loss)


def test_dead_codes_are_revived_on_schedule(config):
    head, inputs = stage_two(config, revival_interval=2)
    head.train()
    with torch.no_grad():
        head.model.quantizer.codebook.weight[1:] = 1e4  # nobody will ever choose these
        for step in range(2):
            assert head(**inputs).codes.max() == 0, step
        assert len(head(**inputs).codes.unique()) > 10
    assert int(head.training_steps) == 3


def test_pca_initialization_keeps_what_components_hold(config):
    """Encoded and decoded at once, embeddings come back as their projection onto the principal components."""
    head, _ = stage_two(config, pca_initialization=True)
    causal = low_rank_embeddings(config, 200)
    head.initialize_from_embeddings(causal)
    with torch.no_grad():
        again = head.model.decode_layer(head.model.encode_layer(causal))
    assert ((again - causal).square().mean() / causal.var()).item() < 0.02


def low_rank_embeddings(config, count: int) -> torch.Tensor:
    """Return embeddings of `code_dim` components and a mean, the same at every position."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(config.code_dim, config.qformer_config.hidden_size, generator=generator)
    hidden = torch.randn(count, 1, config.code_dim, generator=generator) @ directions / 5
    mean = torch.randn(hidden.shape[-1], generator=generator)
    return (hidden + mean).expand(-1, config.num_codes, -1)


def test_prefix_masks_show_only_first_codes(config):
    head, inputs = stage_two(config, prefix_probability=1.0)
    codes = torch.zeros(500, config.num_codes, dtype=torch.long)
    mask = head._sample_prefixes(codes)
    lengths = mask.sum(1)
    assert torch.equal(mask, torch.arange(codes.shape[1]) < lengths[:, None])
    assert lengths.min() == 1 and lengths.max() == codes.shape[1]


def _worker(rank: int, port: int, folder: str, queue) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    head = SeedForContrastiveLearning.from_pretrained(folder).eval()
    part = {key: value[3 * rank : 3 * rank + 3] for key, value in batch(head.config).items()}
    loss = head(**part).loss
    loss.backward()
    gradient = head.model.qformer.query_tokens.grad.clone()
    dist.all_reduce(gradient)
    dist.all_reduce(loss.detach())
    if rank == 0:
        queue.put((gradient / 2).numpy())
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path, config):
    import socket

    head = SeedForContrastiveLearning(config).eval()
    head.save_pretrained(tmp_path)
    head(**batch(config)).loss.backward()
    expected = head.model.qformer.query_tokens.grad
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_worker, args=(rank, port, str(tmp_path), queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = torch.from_numpy(queue.get(timeout=120))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_without_processes_gathering_is_the_identity():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor


def test_a_checkpoint_of_a_stage_loads_as_the_image_tokenizer(tmp_path, config):
    head = SeedForContrastiveLearning(config)
    head.save_pretrained(tmp_path)
    model = SeedModel.from_pretrained(tmp_path)
    for name, tensor in head.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(config, use_reentrant):
    config.qformer_config.hidden_dropout_prob = config.qformer_config.attention_probs_dropout_prob = 0.0
    config.reverse_qformer_config.hidden_dropout_prob = 0.0
    config.reverse_qformer_config.attention_probs_dropout_prob = 0.0
    head, inputs = stage_two(config)
    head.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            head.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        head.zero_grad()
        head(**inputs).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("head_class", [SeedForQuantization, SeedForContrastiveLearning])
def test_what_is_frozen_drops_nothing_out(config, head_class):
    """The outputs of frozen modules are targets or inputs, and do not change from one pass to the next."""
    config.vision_config.attention_dropout = 0.5
    config.qformer_config.hidden_dropout_prob = 0.5
    model = head_class(config).train().model
    pixel_values = batch(config)["pixel_values"]
    frozen = model.get_vision_features
    if head_class is SeedForQuantization:
        frozen = model.get_causal_embeddings
        assert model.reverse_qformer.training and not model.qformer.training
    assert torch.equal(frozen(pixel_values), frozen(pixel_values))


def test_captioning_learns_no_padding(config):
    head, inputs = SeedForImageTextPretraining(config).eval(), batch(config)
    features = head.model.encode_vision(inputs["pixel_values"], None)
    words, mask = inputs["input_ids"], inputs["attention_mask"].clone()
    mask[:, 3:] = 0
    other = words.clone()
    other[:, 3:] = 7
    with torch.no_grad():
        expected = head._caption(features, words[:, :3], mask[:, :3])
        torch.testing.assert_close(head._caption(features, words, mask), expected)
        torch.testing.assert_close(head._caption(features, other, mask), expected)


def test_a_batch_of_one_concept_has_matches_only(config):
    """Every text that is drawn as a wrong one is right then."""
    head, inputs = SeedForImageTextPretraining(config).eval(), batch(config)
    with torch.no_grad():
        head.matching_head.weight.zero_()
        head.matching_head.bias.copy_(torch.tensor([0.0, 20.0]))  # sure that all of them match
        alike = head(**inputs | {"groups": torch.zeros(6, dtype=torch.long)}).losses["matching"]
        distinct = head(**inputs).losses["matching"]
    assert float(alike) == pytest.approx(0, abs=1e-6) and float(distinct) == pytest.approx(10, rel=1e-3)


def test_the_temperature_divides_by_no_less_than_its_bound(config):
    head, losses = SeedForContrastiveLearning(config).eval(), {}
    for temperature in (1e-6, 0.01, 0.02):
        with torch.no_grad():
            head.temperature.fill_(temperature)
        losses[temperature] = float(head(**batch(config)).loss)
    assert losses[1e-6] == losses[0.01] != losses[0.02]
