from pathlib import Path

import pytest

from seed import SeedForContrastiveLearning, SeedForQuantization
from seed.training.recipes import StageRecipe, apply_head_settings, load_recipe
from seed.training.stage import read_config

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


@pytest.mark.parametrize("stage", ["qformer", "stage1", "stage2"])
@pytest.mark.parametrize("size", ["paper", "tiny", "smoke"])
def test_shipped_recipes_are_valid(stage, size):
    assert load_recipe(RECIPES / stage / f"{size}.yaml").epochs > 0


def test_the_control_of_stage_one_differs_in_the_mask_alone():
    causal, control = (load_recipe(RECIPES / "stage1" / f"{name}.yaml") for name in ("tiny", "tiny_bidirectional"))
    assert causal.model.pop("qformer_config") == {"causal": True}
    assert control.model.pop("qformer_config") == {"causal": False}
    assert causal == control


def test_the_paper_recipe_of_stage_two_switches_our_additions_off(config):
    head = SeedForQuantization(config)
    apply_head_settings(head, load_recipe(RECIPES / "stage2" / "paper.yaml").head)
    assert (head.quantization_weight, head.generation_weight, head.reconstruction_weight) == (5.0, 0.5, 2.0)
    assert not head.prefix_probability and not head.kmeans_initialization and not head.revival_interval


@pytest.mark.parametrize(
    "text, message",
    [
        ("epochs: 1\ntraining: {}\nepoch: 2\n", "Unknown key 'epoch'.*expected some of.*'epochs'"),
        ("epochs: 1\ntraining: {}\ndata: {view: 3}\n", "Unknown key 'view'.*'views'"),
        ("epochs: 1\ntraining: {}\nimage_processor: {sizee: 3}\n", "Unknown key 'sizee'.*image_processor.*'size'"),
        ("training: {}\n", "lacks the key 'epochs'"),
        ("- 1\n", "not a mapping"),
        ("epochs: [\n", "not YAML"),
        ("epochs: ten\ntraining: {}\n", "'epochs' .* is 'ten'; expected a number"),
        ("epochs: 1\ntraining:\n", "'training' .* is None; expected keys with values"),
        ("epochs: 1\ntraining: {}\ndata:\n", "data is None; expected keys with values"),
        ("epochs: 1\ntraining: {}\nhead:\n", "'head' .* is None"),
        ("epochs: 1\ntraining: {}\nmodel: {qformer_config: }\n", "qformer_config is None"),
        ("epochs: 1\ntraining: {learning_rate: 1e-3}\n", "'learning_rate' .* is '1e-3'; expected a number .*1.0e-3"),
        ("epochs: 1\ntraining: {max_steps: 5}\n", "'max_steps' does not belong in the recipe"),
    ],
)
def test_a_bad_recipe_names_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_overrides_of_the_model_are_checked(config, tmp_path):
    config.save_pretrained(tmp_path)
    recipe = StageRecipe(epochs=1, training={}, model={"quantization_loss_weighting": "legcy"})
    with pytest.raises(Exception, match="legcy"):
        read_config(str(tmp_path), recipe, use_code_branch=True)
    recipe.model = {"quantization_loss_weighting": "standard"}
    assert read_config(str(tmp_path), recipe, use_code_branch=True).quantization_loss_weighting == "standard"


def test_an_unknown_head_setting_is_an_error(config):
    with pytest.raises(ValueError, match="'quantisation_weight'.*quantization_weight"):
        apply_head_settings(SeedForQuantization(config), {"quantisation_weight": 1})
    with pytest.raises(ValueError, match="'quantization_weight' in the recipe's head is '5e-1'; expected a number"):
        apply_head_settings(SeedForQuantization(config), {"quantization_weight": "5e-1"})
    with pytest.raises(ValueError, match="'forward'"):
        apply_head_settings(SeedForContrastiveLearning(config), {"forward": 1})
