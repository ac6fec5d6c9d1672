"""The hash of an image tokenizer's codes: computed once, and never an old one after a change."""

import copy
import hashlib

import pytest
import torch
from tiny_models import make_tiny_seed_config

from seed.modeling_seed import SeedModel


def make_model(seed=0):
    torch.manual_seed(seed)
    return SeedModel(make_tiny_seed_config()).eval()


def test_the_hash_of_codes_is_computed_once(monkeypatch):
    model, digests, sha256 = make_model(), [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *args: digests.append(args) or sha256(*args))
    assert model.codes_hash() == model.codes_hash() == copy.deepcopy(model).codes_hash()
    assert len(digests) == 1


def _through_numpy(weight):
    weight.detach().numpy()[0, 0] += 1


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.add_(1),
        lambda weight: weight.data.mul_(2),  # no version counter sees these two
        _through_numpy,
        lambda weight: weight.copy_(weight.flip(0)),  # no sum sees this one
        lambda weight: weight.data[0, 0].copy_(torch.nextafter(weight[0, 0], weight[0, 1])),
        lambda weight: setattr(weight, "data", weight.data.clone() + 1),
    ],
)
def test_no_change_of_a_weight_leaves_an_old_hash(change):
    model = make_model()
    before = model.codes_hash()
    with torch.no_grad():
        change(model.quantizer.codebook.weight)
    changed = model.codes_hash()
    fresh = SeedModel(model.config)
    fresh.load_state_dict(model.state_dict())
    assert changed != before and changed == fresh.codes_hash()


def test_the_hash_follows_loading_casting_and_copying():
    model, other = make_model(), make_model(seed=1)
    ours, theirs = model.codes_hash(), other.codes_hash()
    assert ours != theirs
    clone = copy.deepcopy(model)
    for assign in (False, True):
        clone.load_state_dict(other.state_dict(), assign=assign)
        assert clone.codes_hash() == theirs and model.codes_hash() == ours
        clone.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
        assert clone.codes_hash() == ours and other.codes_hash() == theirs
    # Casting frees the old weights, whose memory the new ones may get.
    rounded = copy.deepcopy(model).to(torch.bfloat16).float().codes_hash()
    for _ in range(3):
        clone = copy.deepcopy(model)
        assert clone.codes_hash() == ours
        assert clone.to(torch.bfloat16).codes_hash() == rounded != ours
        assert clone.to(torch.float32).codes_hash() == rounded
