"""SEED-OPT and SEED-Llama against their text models, naive loops and plain cross-entropy."""

import contextlib
import copy
import logging
import pickle
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_seed_config
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    OPTConfig,
    OPTForCausalLM,
)

from seed.configuration_seed_language import SeedLlamaConfig, SeedOPTConfig
from seed.modeling_seed import SeedModel
from seed.modeling_seed_language import VISUAL_MODULES, SeedLlamaForCausalLM, SeedOPTForCausalLM, load_language_model

WORDS = 90  # of the 96 rows: the last 6 are padding, as OPT's last 7
CODES, NUM_CODES, CONTEXT = 64, 32, 128
BOI, EOI, FIRST_CODE, TOTAL = 90, 91, 92, 156

SMALL_OPT = {"vocab_size": 96, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
TEXT_MODELS = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL_OPT, max_position_embeddings=CONTEXT)),
    # As OPT-350M: narrower embeddings, projected, and norms after the layers.
    "opt-350m": lambda: OPTForCausalLM(
        OPTConfig(**SMALL_OPT, max_position_embeddings=CONTEXT, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=1,
        )
    ),
}


@pytest.fixture(scope="module")
def seed_model():
    torch.manual_seed(0)
    return SeedModel(make_tiny_seed_config(use_text_branch=False)).eval()


@pytest.fixture(params=list(TEXT_MODELS))
def pair(request, seed_model):
    """A text model and its extension."""
    torch.manual_seed(1)
    text_model = TEXT_MODELS[request.param]().eval()
    with torch.no_grad():  # livelier than the initialisation, so that greedy choices differ from row to row
        for parameter in text_model.parameters():
            parameter.mul_(4)
    extension = SeedOPTForCausalLM if request.param.startswith("opt") else SeedLlamaForCausalLM
    return text_model, extension.from_text_model(text_model, seed_model, text_vocab_size=WORDS)


@pytest.fixture
def model(seed_model):
    torch.manual_seed(1)
    text_model = TEXT_MODELS["opt"]().eval()
    with torch.no_grad():
        for parameter in text_model.parameters():
            parameter.mul_(4)
    return SeedOPTForCausalLM.from_text_model(text_model, seed_model, text_vocab_size=WORDS)


def words(rows: int = 2, length: int = 9) -> torch.LongTensor:
    return torch.randint(3, WORDS, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length))


def mixed(rows: int = 2) -> torch.LongTensor:
    """Words, one whole image, words."""
    codes = torch.randint(FIRST_CODE, TOTAL, (rows, NUM_CODES), generator=torch.Generator().manual_seed(5))
    one = torch.ones(rows, 1, dtype=torch.long)
    return torch.cat([words(rows, 4), BOI * one, codes, EOI * one, words(rows, 5)], dim=1)


@contextlib.contextmanager
def transformers_log(caplog):
    """Capture the messages of transformers' loggers in pytest's `caplog`."""
    root = logging.getLogger("seed")
    stock = logging.getLogger("transformers")
    propagate, stock.propagate = stock.propagate, True
    try:
        with caplog.at_level(logging.WARNING, root.name):
            yield
    finally:
        stock.propagate = propagate


class TestExtension:
    def test_vocabulary_of_the_paper(self):
        config = SeedOPTConfig(text_embedding_rows=50272)
        assert (config.boi_token_id, config.eoi_token_id, config.first_code_token_id) == (50265, 50266, 50267)
        assert config.vocab_size == 58459

    @pytest.mark.parametrize("config_class", [SeedOPTConfig, SeedLlamaConfig])
    def test_contradicting_ids_are_refused(self, config_class):
        with pytest.raises(ValueError, match="vocab_size is 50272"):
            config_class(vocab_size=50272, text_vocab_size=90, codebook_size=64)
        with pytest.raises(ValueError, match="eoi_token_id is 7"):
            config_class(text_vocab_size=90, codebook_size=64, eoi_token_id=7)
        with pytest.raises(ValueError, match="text_embedding_rows is 80"):
            config_class(text_vocab_size=90, text_embedding_rows=80)

    def test_scores_of_words_are_the_text_models_bit_for_bit(self, pair):
        text_model, model = pair
        assert torch.equal(model(words()).logits[..., :WORDS], text_model(words()).logits[..., :WORDS])
        assert model(words()).logits.shape == (2, 9, TOTAL)

    def test_shares_the_text_models_parameters(self, pair):
        text_model, model = pair
        ours = dict(model.named_parameters(remove_duplicate=False))
        for name, parameter in text_model.named_parameters(remove_duplicate=False):
            assert ours.pop(name) is parameter
        assert all(name.startswith(VISUAL_MODULES) for name in ours)
        assert not any(parameter.is_meta for parameter in model.parameters())
        assert not any(buffer.is_meta for buffer in model.buffers())

    def test_visual_embeddings_project_the_codebook(self, model, seed_model):
        embeddings = model.visual_embeddings
        codebook = seed_model.quantizer.codebook.weight
        code = codebook[7] @ embeddings.projection.weight.T + embeddings.projection.bias
        embedded = model.embed_ids(torch.tensor([[5, BOI, EOI, FIRST_CODE + 7]]))[0]
        torch.testing.assert_close(embedded[3], code)
        assert torch.equal(embedded[0], model.model.decoder.embed_tokens.weight[5])
        assert torch.equal(embedded[1:3], embeddings.delimiters.weight)
        assert model.config.image_tokenizer_hash == seed_model.codes_hash()

    def test_input_embeddings_take_visual_tokens_and_follow_copies(self, model):
        ids = torch.tensor([[5, BOI, EOI, FIRST_CODE + 7]])
        # By the decoder's own hand, before anything else has asked for them.
        expected = model.model.decoder.embed_tokens(ids)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for copied in copies:
            assert torch.equal(copied.model(ids).last_hidden_state, model.model(ids).last_hidden_state)
        assert torch.equal(model.get_input_embeddings()(ids), expected)
        assert torch.equal(model.embed_ids(ids), expected)
        with pytest.raises(RuntimeError, match="no model around it"):
            copy.deepcopy(model.get_input_embeddings())(ids)
        with torch.no_grad():
            model.visual_embeddings.projection.bias += 1
        moved = model.get_input_embeddings()(ids)
        assert torch.equal(moved, model.embed_ids(ids)) and not torch.equal(moved, expected)
        for copied in copies:
            assert torch.equal(copied.get_input_embeddings()(ids), expected)
        wrapped = get_peft_model(
            copy.deepcopy(model), LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
        )
        assert torch.equal(wrapped.get_base_model().get_input_embeddings()(ids), moved)
        assert torch.equal(wrapped.get_base_model().embed_ids(ids), moved)
        replaced = torch.nn.Embedding(*model.get_input_embeddings().weight.shape)
        model.set_input_embeddings(replaced)
        assert model.get_input_embeddings() is replaced
        assert torch.equal(model.embed_ids(ids)[:, 0], replaced.weight[5:6])

    def test_save_and_reload(self, pair, tmp_path):
        _, model = pair
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(again(mixed()).logits, model(mixed()).logits)
        assert again.lm_head.weight is again.get_input_embeddings().weight
        assert again.config.vocab_size == TOTAL

    @pytest.mark.parametrize("lost", ["visual_head.weight", "visual_embeddings.codebook", "layers.1.self_attn.q_proj"])
    def test_a_missing_tensor_is_an_error_that_names_it(self, pair, tmp_path, lost):
        _, model = pair
        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        assert "lm_head.weight" not in tensors  # tied, so that it is not missed
        name = next(name for name in tensors if lost in name)
        del tensors[name]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        for load in (AutoModelForCausalLM.from_pretrained, load_language_model):
            with pytest.raises(ValueError, match=rf"lacks 1 tensors.*{re.escape(name)}.*again.*from_text_model"):
                load(tmp_path)

    def test_an_adapters_folder_loads_with_its_model(self, model, tmp_path):
        model.save_pretrained(tmp_path / "model")
        base = SeedOPTForCausalLM.from_pretrained(tmp_path / "model")
        adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        again = SeedOPTForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(again(mixed()).logits, adapted(mixed()).logits)

    def test_an_adapters_code_embeddings_are_not_lost_in_silence(self, model, tmp_path):
        """transformers' own ways refuse the adapter; [`seed.training.lora.load_adapter`] loads it."""
        model.save_pretrained(tmp_path / "model")
        extended = SeedOPTForCausalLM.from_pretrained(tmp_path / "model")
        extended.add_code_embeddings()
        settings = LoraConfig(target_modules=["q_proj"], modules_to_save=["visual_embeddings", "visual_head"])
        adapted = get_peft_model(extended, settings)
        adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "model")
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        for load in (
            AutoModelForCausalLM.from_pretrained,
            SeedOPTForCausalLM.from_pretrained,
            SeedOPTForCausalLM.from_pretrained(tmp_path / "model").load_adapter,
        ):
            with pytest.raises(ValueError, match="the adapter has code embeddings, and this model has none"):
                load(str(tmp_path / "adapter"))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_has_no_nan(self, pair, dtype):
        _, model = pair
        for mode in (None, "text", "image"):
            assert model.to(dtype)(mixed(), generation_mode=mode).logits.isfinite().all()

    def test_another_text_model_is_refused(self, seed_model):
        with pytest.raises(TypeError, match="extends OPTForCausalLM; got a LlamaForCausalLM"):
            SeedOPTForCausalLM.from_text_model(TEXT_MODELS["llama"](), seed_model)
        with pytest.raises(ValueError, match="text_embedding_rows is 96, fewer than the 97"):
            SeedOPTForCausalLM.from_text_model(TEXT_MODELS["opt"](), seed_model, text_vocab_size=97)

    def test_vocabulary_cannot_be_resized(self, model):
        with pytest.raises(NotImplementedError, match="fixed"):
            model.resize_token_embeddings(200)
        assert model.resize_token_embeddings(TOTAL) is model.get_input_embeddings()  # what fits, fits

    def test_merged_text_model_scores_the_same(self, pair, tmp_path):
        text_model, model = pair
        expected = model(mixed()).logits
        model.merge_into_text_model().save_pretrained(tmp_path)
        plain = type(text_model).from_pretrained(tmp_path)
        assert type(plain) is type(text_model) and plain.config.vocab_size == 192
        torch.testing.assert_close(plain(mixed()).logits[..., :TOTAL], expected, rtol=0, atol=1e-5)
        assert plain.generate(words(), max_new_tokens=12, do_sample=True, temperature=50.0).max() < TOTAL
        # Software that ignores the generation configuration does not choose the padding either, even where all scores
        # are negative, as rows of zeros would then win.
        ids = torch.randint(0, TOTAL, (20, 30))
        assert plain(ids).logits.argmax(-1).max() < TOTAL
        plain.get_output_embeddings().weight.data.neg_()
        assert plain(ids).logits.argmax(-1).max() < TOTAL

    def test_merging_keeps_what_is_suppressed_and_wants_lora_merged(self, model):
        model.generation_config.suppress_tokens = [7]
        assert model.merge_into_text_model().generation_config.suppress_tokens == [7, *range(TOTAL, 192)]
        get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=list(VISUAL_MODULES)))
        with pytest.raises(ValueError, match="LoRA weights: merge them first"):
            model.merge_into_text_model()

    def test_code_embeddings_are_added_to_the_projection(self, pair, seed_model, tmp_path):
        text_model, without = pair
        extended = type(without).from_text_model(text_model, seed_model, WORDS, code_embeddings=True)
        extended.visual_embeddings.load_state_dict(without.visual_embeddings.state_dict(), strict=False)
        extended.visual_head.load_state_dict(without.visual_head.state_dict())
        torch.testing.assert_close(extended(mixed()).logits, without(mixed()).logits, rtol=0, atol=0)
        rows = torch.randn(extended.visual_embeddings.codes.weight.shape)
        extended.visual_embeddings.codes.weight.data.copy_(rows)
        expected = without.embed_ids(mixed()).detach().clone()
        expected[mixed() >= FIRST_CODE] += rows[mixed()[mixed() >= FIRST_CODE] - FIRST_CODE]
        torch.testing.assert_close(extended.embed_ids(mixed()), expected)
        extended.save_pretrained(tmp_path)
        again = type(extended).from_pretrained(tmp_path)
        assert again.config.code_embeddings
        torch.testing.assert_close(again.embed_ids(mixed()), expected)
        plain = again.merge_into_text_model()
        torch.testing.assert_close(plain.get_input_embeddings()(mixed()), expected)

    def test_a_text_model_in_pieces_is_refused(self, seed_model):
        text_model = TEXT_MODELS["opt"]()
        text_model.hf_device_map = {"model.decoder.layers.0": 0, "model.decoder.layers.1": "cpu"}
        with pytest.raises(ValueError, match="spread over devices"):
            SeedOPTForCausalLM.from_text_model(text_model, seed_model)


class TestForward:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_packed_rows_are_isolated(self, pair, attention):
        """Two examples in one row score as they do alone, with a bool mask, whatever the back end."""
        _, model = pair
        model.set_attn_implementation(attention)
        first, second = words(1, 7), mixed(1)
        length = first.shape[1] + second.shape[1]
        mask = torch.zeros(1, 1, length, length, dtype=torch.bool)
        mask[..., :7, :7] = torch.ones(7, 7).tril().bool()
        mask[..., 7:, 7:] = torch.ones(length - 7, length - 7).tril().bool()
        positions = torch.cat([torch.arange(7), torch.arange(length - 7)])[None]
        packed = model(torch.cat([first, second], 1), attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(packed[:, :7], model(first).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(packed[:, 7:], model(second).logits, rtol=1e-4, atol=1e-4)

    def test_tuples_embeddings_and_attentions_as_in_transformers(self, pair):
        _, model = pair
        model.set_attn_implementation("eager")
        whole = model(mixed(), output_hidden_states=True, output_attentions=True)
        length = mixed().shape[1]
        assert len(whole.hidden_states) == 3 and whole.attentions[0].shape == (2, 4, length, length)
        assert torch.equal(model(mixed(), return_dict=False)[0], whole.logits)
        assert torch.equal(model(inputs_embeds=model.embed_ids(mixed())).logits, whole.logits)
        assert torch.equal(model(mixed(), logits_to_keep=2).logits, whole.logits[:, -2:])

    def test_gradient_checkpointing_changes_no_gradient(self, model):
        def gradient():
            model.zero_grad()
            model(mixed(), labels=mixed(), use_cache=False).loss.backward()
            return model.visual_embeddings.projection.weight.grad.clone()

        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.model.decoder.dropout = 0.0
        for layer in model.model.decoder.layers:
            layer.dropout = 0.0
        expected = gradient()
        model.gradient_checkpointing_enable()
        torch.testing.assert_close(gradient(), expected)


class TestLoss:
    def test_is_cross_entropy_over_all_tokens(self, pair):
        _, model = pair
        labels = mixed().masked_fill(torch.arange(mixed().shape[1]) < 6, -100)
        logits = model(mixed()).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(logits.reshape(-1, TOTAL), labels[:, 1:].reshape(-1))
        torch.testing.assert_close(model(mixed(), labels=labels).loss, expected)
        summed = model(mixed(), labels=labels, num_items_in_batch=torch.tensor(10)).loss
        torch.testing.assert_close(summed, expected * (labels[:, 1:] != -100).sum() / 10)

    def test_gradient_reaches_the_visual_modules(self, model):
        model.train()
        outputs = model(mixed(), labels=mixed())
        assert outputs.logits is None
        outputs.loss.backward()
        for name in VISUAL_MODULES:
            assert all(parameter.grad.abs().sum() > 0 for parameter in getattr(model, name).parameters())
        assert not model.visual_embeddings.codebook.requires_grad

    def test_the_head_may_be_on_another_device_than_the_last_layer(self, model):
        """`device_map` spreads a model with tied embeddings like this; the meta device stands for the second GPU."""
        handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output.to("meta"))
        try:
            for counted in (None, torch.tensor(3)):
                assert model(mixed(), labels=mixed(), num_items_in_batch=counted).loss.is_meta
        finally:
            handle.remove()

    def test_no_labels_in_a_batch_is_no_nan(self, model):
        assert model.train()(words(), labels=torch.full_like(words(), -100)).loss == 0


def naive_image(model, prompt: torch.LongTensor, unconditional=None, scale=1.0) -> torch.LongTensor:
    """Return the greedy codes of one prompt, computed by whole forward passes without a cache."""
    ids = prompt
    for _ in range(NUM_CODES):
        scores = model(ids).logits[0, -1].log_softmax(-1)[FIRST_CODE:].log_softmax(-1)
        if unconditional is not None:
            # Over all visual tokens, as guidance sees them.
            conditional = model(ids).logits[0, -1, BOI:].log_softmax(-1)
            empty = model(torch.cat([unconditional, ids[:, prompt.shape[1] :]], dim=1)).logits[0, -1, BOI:]
            empty = empty.log_softmax(-1)
            scores = (empty + scale * (conditional - empty))[2:]
        ids = torch.cat([ids, scores.argmax()[None, None] + FIRST_CODE], dim=1)
    return ids[:, prompt.shape[1] :]


def opened(prompt: torch.LongTensor) -> torch.LongTensor:
    return torch.nn.functional.pad(prompt, (0, 1), value=BOI)


def check_image(row: list[int]) -> None:
    """`<img>`, 32 codes, `</img>` at the end of a row."""
    assert row[-1] == EOI and row[-NUM_CODES - 2] == BOI
    assert all(FIRST_CODE <= token < TOTAL for token in row[-NUM_CODES - 1 : -1])


class TestImageMode:
    def test_greedy_equals_a_naive_loop(self, pair):
        _, model = pair
        drawn = model.generate(words(1), generation_mode="image", do_sample=False)
        assert torch.equal(drawn[:, 10:-1], naive_image(model, opened(words(1))))
        check_image(drawn[0].tolist())

    def test_guidance_equals_a_naive_loop(self, pair):
        _, model = pair
        empty = torch.tensor([[7, 8, BOI]])
        drawn = model.generate(
            words(1), generation_mode="image", do_sample=False, token_guidance_scale=3.0, unconditional_ids=empty
        )
        assert torch.equal(drawn[:, 10:-1], naive_image(model, opened(words(1)), empty, 3.0))
        assert not torch.equal(drawn, model.generate(words(1), generation_mode="image", do_sample=False))

    @pytest.mark.parametrize(
        "settings",
        [
            {"do_sample": True},
            {"num_beams": 3},
            {"do_sample": True, "num_return_sequences": 2},
            {"num_beams": 4, "num_return_sequences": 2},
            {"cache_implementation": "static"},
            {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 2.0},
            {"min_new_tokens": 40, "repetition_penalty": 5.0},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
    def test_always_a_whole_image(self, model, settings, guided):
        if guided:
            settings = settings | {"token_guidance_scale": 4.0, "unconditional_ids": torch.tensor([[7, BOI]])}
        drawn = model.generate(words(), generation_mode="image", **settings)
        assert drawn.shape == (2 * settings.get("num_return_sequences", 1), 9 + NUM_CODES + 2)
        for row in drawn.tolist():
            check_image(row)

    def test_guided_beams_are_scored_with_their_own_history(self, model):
        """A beam's score is the mean of the guided naive scores of its codes."""
        empty, scale = torch.tensor([[7, 8, BOI]]), 2.0
        found = model.generate(
            words(1),
            generation_mode="image",
            num_beams=3,
            token_guidance_scale=scale,
            unconditional_ids=empty,
            return_dict_in_generate=True,
            output_scores=True,
        )
        ids, total, prompt = found.sequences, 0.0, 10
        for step in range(prompt, ids.shape[1]):
            conditional = model(ids[:, :step]).logits[0, -1, BOI:].log_softmax(-1)
            against = model(torch.cat([empty, ids[:, prompt:step]], 1)).logits[0, -1, BOI:].log_softmax(-1)
            total += (against + scale * (conditional - against))[ids[0, step] - BOI].item()
        # transformers normalises before processors, so the sum is the processors' own.
        assert found.sequences_scores.item() == pytest.approx(total / (NUM_CODES + 1), rel=1e-3)

    @pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
    def test_an_image_that_the_prompt_has_begun_is_finished(self, pair, guided):
        """The model goes on as it did without help after the same codes."""
        _, model = pair
        settings = {"generation_mode": "image", "do_sample": False}
        if guided:
            settings |= {"token_guidance_scale": 3.0, "unconditional_ids": torch.tensor([[7, 8, BOI]])}
        whole = model.generate(words(), **settings)
        assert torch.equal(model.generate(whole[:, : 9 + 1 + 5], **settings), whole)
        assert torch.equal(model.generate(whole[:, :-1], **settings), whole)  # </img> alone is missing
        begun = torch.cat([torch.nn.functional.pad(whole[:1, : 9 + 1 + 5], (2, 0), value=1), whole[1:, : 9 + 1 + 7]])
        if guided:
            with pytest.raises(ValueError, match=r"have \[5, 7\] codes"):
                model.generate(begun, **settings)
            return
        mask = torch.ones_like(begun)
        mask[0, :2] = 0
        ends = model.generate(begun, attention_mask=mask, **settings)
        assert torch.equal(ends[0, 2 : 2 + whole.shape[1]], whole[0])
        assert torch.equal(ends[1, : whole.shape[1]], whole[1])
        with pytest.raises(ValueError, match=f"it lacks {NUM_CODES - 5} codes and </img>"):
            model.generate(whole[:, : 9 + 1 + 5], generation_mode="interleaved", max_new_tokens=5)
        with pytest.raises(ValueError, match="let all or none"):
            model.generate(torch.cat([begun[:1], words(1, begun.shape[1])]), generation_mode="image")

    def test_batch_equals_single(self, pair):
        _, model = pair
        short, long = words(1, 5), words(1, 9)
        batch = torch.cat([torch.nn.functional.pad(short, (4, 0), value=1), long])
        mask = torch.ones_like(batch)
        mask[0, :4] = 0
        together = model.generate(batch, attention_mask=mask, generation_mode="image", do_sample=False)
        for row, prompt in enumerate((short, long)):
            alone = model.generate(prompt, generation_mode="image", do_sample=False)
            assert torch.equal(together[row, -NUM_CODES - 1 :], alone[0, -NUM_CODES - 1 :])

    def test_static_cache_changes_nothing(self, pair):
        _, model = pair
        dynamic = model.generate(words(), generation_mode="image", do_sample=False)
        static = model.generate(words(), generation_mode="image", do_sample=False, cache_implementation="static")
        assert torch.equal(dynamic, static)

    def test_same_seed_same_image(self, model):
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn.append(model.generate(words(), generation_mode="image", do_sample=True))
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])

    def test_computes_no_word_rows(self, model):
        calls = []
        model.lm_head.register_forward_hook(lambda *_: calls.append(1))
        model.generate(words(), generation_mode="image", do_sample=False)
        assert not calls


class TestOtherModes:
    def test_text_mode_equals_the_text_model(self, pair):
        text_model, model = pair
        # The text model's spare rows are no words; its own generate may choose them.
        text_model.generation_config.suppress_tokens = [*range(WORDS, 96)]
        settings = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "num_beams": 1}
        assert torch.equal(model.generate(words(), **settings), text_model.generate(words(), **settings))

    def test_text_mode_starts_from_embeddings_or_nothing(self, pair):
        _, model = pair
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        expected = model.generate(words(), **settings)[:, 9:]
        assert torch.equal(model.generate(inputs_embeds=model.embed_ids(words()), **settings), expected)
        start = torch.tensor([[model.config.bos_token_id]])
        assert torch.equal(model.generate(**settings), model.generate(start, **settings))

    def test_text_mode_never_writes_visual_tokens(self, model):
        with torch.no_grad():
            model.visual_head.weight.mul_(100)
        written = model.generate(words(), max_new_tokens=60, do_sample=True, temperature=20.0, eos_token_id=None)
        assert written[:, 9:].max() < WORDS

    @pytest.mark.parametrize("beams", [1, 3])
    def test_interleaved_images_are_whole(self, model, beams):
        """At these temperatures the model opens images everywhere; the limit falls into the middle of one."""
        torch.manual_seed(0)
        written = model.generate(
            words(16),
            generation_mode="interleaved",
            max_new_tokens=110,
            do_sample=True,
            temperature=1e4,
            top_k=0,
            num_beams=beams,
            eos_token_id=None,
        )
        images = 0
        for row in written.tolist():
            position = 9
            while position < len(row):
                if row[position] == BOI:
                    check_image(row[: position + NUM_CODES + 2])
                    position += NUM_CODES + 2
                    images += 1
                else:
                    assert row[position] < BOI
                    position += 1
        assert images >= 3

    def test_interleaved_has_room_for_images_by_default(self, model):
        with torch.no_grad():
            model.visual_head.weight[0] = model.lm_head.weight.mean(0) * 0
        torch.manual_seed(0)
        settings = {"do_sample": True, "temperature": 1e4, "top_k": 0, "eos_token_id": None}
        written = model.generate(words(16), generation_mode="interleaved", **settings)
        assert written.shape[1] == CONTEXT and (written == BOI).any()

    def test_an_image_that_the_prompt_opened_is_finished(self, model):
        prompt = opened(words())
        written = model.generate(prompt, generation_mode="interleaved", max_new_tokens=NUM_CODES + 1, do_sample=False)
        for row in written.tolist():
            check_image(row)
        with pytest.raises(ValueError, match="cut the image short"):
            model.generate(prompt, generation_mode="interleaved", max_new_tokens=NUM_CODES)
        for limit in ({"max_new_tokens": NUM_CODES}, {"max_length": prompt.shape[1] + 5}, {"max_length": 3}):
            with pytest.raises(ValueError, match="cut the image short"):
                model.generate(prompt, generation_mode="interleaved", generation_config=GenerationConfig(**limit))
        whole = {"generation_config": GenerationConfig(max_new_tokens=5), "do_sample": False}
        assert model.generate(prompt, generation_mode="image", **whole).shape[1] == prompt.shape[1] + NUM_CODES + 1

    def test_interleaved_keeps_to_the_limit_of_a_configuration(self, model):
        for limit, length in (({"max_new_tokens": 7}, 16), ({"max_length": 15}, 15), ({"max_length": 500}, CONTEXT)):
            config = GenerationConfig(**limit, do_sample=False)  # has no token that ends the text
            written = model.generate(words(), generation_mode="interleaved", generation_config=config)
            assert written.shape[1] == length

    def test_a_processor_of_the_users_cannot_break_the_grammar(self, model):
        class LovesWord5(LogitsProcessor):
            def __call__(self, input_ids, scores):
                scores[:, 5] = 1e6
                return scores

        drawn = model.generate(words(), generation_mode="image", logits_processor=[LovesWord5()])
        check_image(drawn[0].tolist())

    def test_words_are_written_where_all_words_are_banned(self, model):
        class BansWords(LogitsProcessor):
            def __call__(self, input_ids, scores):
                return scores.index_fill(1, torch.arange(BOI), -torch.inf)

        written = model.generate(words(), logits_processor=[BansWords()], max_new_tokens=3, do_sample=False)
        assert written.max() < BOI

    @pytest.mark.parametrize("mode", ["image", "interleaved"])
    def test_what_alone_is_allowed_cannot_be_banned(self, model, mode):
        class BansImages(LogitsProcessor):
            def __call__(self, input_ids, scores):
                return scores.index_fill(1, torch.arange(BOI, TOTAL), -torch.inf)

        prompt = opened(words())
        settings = {"logits_processor": [BansImages()], "max_new_tokens": NUM_CODES + 4, "eos_token_id": None}
        written = model.generate(prompt, generation_mode=mode, do_sample=False, **settings)
        for row in written.tolist():
            check_image(row[: prompt.shape[1] + NUM_CODES + 1])
        assert mode == "image" or written[:, -3:].max() < BOI

    def test_more_than_the_context_holds_is_what_it_holds(self, model, caplog):
        """transformers' pipelines ask for 256 tokens on their own."""
        settings = {"do_sample": False, "eos_token_id": None}
        with transformers_log(caplog):
            written = model.generate(words(1, 100), max_new_tokens=50, **settings)
        assert torch.equal(written, model.generate(words(1, 100), max_new_tokens=28, **settings))
        assert "50 new tokens after a prompt of 100 do not fit into the context of 128; at most 28" in caplog.text

    def test_a_configuration_is_read_and_left_as_it_is(self, model, caplog):
        config = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=1)
        before = config.to_dict()
        with transformers_log(caplog):
            for mode, length in (("text", 7), ("interleaved", 7), ("image", NUM_CODES + 2)):
                written = model.generate(words(), generation_mode=mode, generation_config=config)
                assert written.shape[1] == 9 + length
        assert config.to_dict() == before and "deprecated" not in caplog.text

    def test_a_configuration_without_a_limit_leaves_the_models(self, model):
        """transformers fills what a configuration leaves open, and so do we."""
        model.generation_config.max_new_tokens = 5
        written = model.generate(words(), generation_config=GenerationConfig(do_sample=False, eos_token_id=TOTAL + 1))
        assert written.shape[1] == 9 + 5

    def test_rows_that_are_done_wait_without_further_images(self, seed_model):
        """The text model has no token to pad with, like Llama's default configuration."""
        config = TEXT_MODELS["llama"]().config
        config.pad_token_id = None
        llama = SeedLlamaForCausalLM.from_text_model(LlamaForCausalLM(config).eval(), seed_model, text_vocab_size=WORDS)
        whole = llama.generate(words(), generation_mode="image", do_sample=False)
        begun = torch.cat([torch.nn.functional.pad(whole[:1, :15], (4, 0), value=1), whole[1:, :19]])
        mask = torch.ones_like(begun)
        mask[0, :4] = 0
        ends = llama.generate(begun, attention_mask=mask, generation_mode="image", do_sample=False)
        assert (ends == EOI).sum(1).tolist() == [1, 1]

    def test_streams_text(self, model):
        class Streamer:
            tokens = []

            def put(self, value):
                self.tokens += value.flatten().tolist()

            def end(self):
                self.tokens.append("end")

        written = model.generate(words(1), max_new_tokens=5, eos_token_id=None, num_beams=1, streamer=Streamer())
        assert [*written[0].tolist(), "end"] == Streamer.tokens


class TestBadInput:
    def test_unknown_mode(self, model):
        with pytest.raises(ValueError, match="generation_mode is 'picture'"):
            model.generate(words(), generation_mode="picture")

    @pytest.mark.parametrize("limit", [{"max_new_tokens": 20}, {"max_length": 40}], ids=str)
    def test_an_image_is_not_cut_short(self, model, limit):
        with pytest.raises(ValueError, match="cut the image short"):
            model.generate(words(), generation_mode="image", **limit)

    def test_prompt_longer_than_the_context(self, model):
        with pytest.raises(ValueError, match="exceeds the context of 128"):
            model.generate(words(1, 128), max_new_tokens=1)
        with pytest.raises(ValueError, match="exceeds the context of 128"):
            model.generate(words(1, 110), generation_mode="image")
        with pytest.raises(ValueError, match="leaves 0 tokens after a prompt of 100; ask for 1 to 28"):
            model.generate(words(1, 100), max_length=100)

    def test_guidance_needs_the_empty_prompt_and_an_image(self, model):
        with pytest.raises(ValueError, match="unconditional_ids"):
            model.generate(words(), generation_mode="image", token_guidance_scale=2.0)
        with pytest.raises(ValueError, match="generation_mode='image'"):
            model.generate(words(), token_guidance_scale=2.0, unconditional_ids=words())

    def test_prompts_that_disagree_about_the_image(self, model):
        prompts = words()
        prompts[0, -1] = BOI
        with pytest.raises(ValueError, match="let all or none"):
            model.generate(prompts, generation_mode="image")

    @pytest.mark.parametrize("wrong", [TOTAL, -1])
    def test_ids_of_another_vocabulary(self, model, wrong):
        with pytest.raises(ValueError, match=f"Token id {wrong} is out of range"):
            model.generate(torch.tensor([[5, wrong]]))

    def test_an_assistant_cannot_draw(self, model):
        for mode in ("image", "interleaved"):
            with pytest.raises(ValueError, match=f"assistant_model does not work in generation_mode='{mode}'"):
                model.generate(words(1), generation_mode=mode, assistant_model=model)

    def test_an_image_needs_a_prompt(self, model):
        with pytest.raises(ValueError, match="generation_mode='image' needs input_ids"):
            model.generate(generation_mode="image", generation_config=GenerationConfig(max_new_tokens=40))
