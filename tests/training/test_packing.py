import random

import pytest
import torch
from tiny_language import tiny_processor
from tiny_repository import make_seed_model
from transformers import OPTConfig, OPTForCausalLM

from seed.modeling_seed_language import SeedOPTForCausalLM
from seed.training.packing import PackingCollator, PaddingCollator, pack

PAD = 1


def make_opt(vocab_size: int, attention: str) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=vocab_size, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=128, init_std=0.3, dropout=0.0, pad_token_id=PAD,
        attn_implementation=attention,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


def text_examples() -> list[dict]:
    """Of different lengths, loss on all or a part; the last has loss on its first token, which nothing predicts."""
    rng = random.Random(0)
    examples = []
    for length, prompt in [(9, 4), (17, 0), (5, 2), (30, 11), (12, 0)]:
        ids = [rng.randrange(3, 300) for _ in range(length)]
        examples.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return examples


def image_examples() -> list[dict]:
    processor = tiny_processor()
    codes = torch.randint(64, (3, 32))
    return [
        processor.caption_example(codes[0], "a red square"),
        processor.drawing_example("a dog", codes[1]),
        processor.drawing_example("", codes[2]),
        processor.question_example(codes[1], "What is it?", "a dog"),
        processor.document_example(["a cat", codes[0].tolist(), "and a dog", codes[2].tolist()]),
    ]


def make_case(kind: str, attention: str):
    if kind == "opt":
        return make_opt(300, attention), text_examples()
    processor = tiny_processor()
    rows = processor.boi_token_id
    seed_model = make_seed_model()
    model = SeedOPTForCausalLM.from_text_model(make_opt(rows, attention), seed_model, rows)
    return model, image_examples()


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["opt", "seed_opt"])
def test_packing_changes_no_examples_loss(kind, attention):
    model, examples = make_case(kind, attention)
    mask_dtype = torch.bool if attention == "sdpa" else torch.float32
    batch = PackingCollator(PAD, 128, mask_dtype)(examples)
    assert len(batch["input_ids"]) < len(examples), "several to a row"
    logits = logits_of(model, batch)

    # The reference is written out here: each example alone, without mask or positions, cross-entropy of what follows.
    summed, count, found = 0.0, 0, []
    starts = (batch["position_ids"] == 0) & (batch["input_ids"] != PAD)
    for row, start in starts.nonzero().tolist():
        example = next(
            e for e in examples if e["input_ids"] == batch["input_ids"][row, start:][: len(e["input_ids"])].tolist()
        )
        found.append(example["input_ids"])
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
        with torch.no_grad():
            alone = model(input_ids=ids).logits[0]
        length = len(example["input_ids"])
        torch.testing.assert_close(logits[row, start : start + length], alone, rtol=1e-4, atol=1e-4)
        log_probabilities = alone[:-1].log_softmax(-1)
        learnt = labels[1:] != -100
        summed -= log_probabilities[learnt].gather(1, labels[1:][learnt][:, None]).sum()
        count += int(learnt.sum())
    assert sorted(found) == sorted(example["input_ids"] for example in examples)
    with torch.no_grad():
        loss = model(**batch).loss
    torch.testing.assert_close(loss, summed / count, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_example_influences_another(attention):
    model, examples = make_case("opt", attention)
    collator = PackingCollator(PAD, 128, torch.bool if attention == "sdpa" else torch.float32)
    before = logits_of(model, collator(examples))
    changed = [dict(example) for example in examples]
    changed[1]["input_ids"] = [(token + 7) % 290 + 3 for token in examples[1]["input_ids"]]
    batch = collator(changed)
    difference = (logits_of(model, batch) - before).abs().amax(-1)
    mine = torch.zeros_like(difference, dtype=torch.bool)
    for row, start in (batch["position_ids"] == 0).nonzero().tolist():
        if batch["input_ids"][row, start : start + 17].tolist() == changed[1]["input_ids"]:
            mine[row, start : start + 17] = True
    assert mine.sum() == 17 and (difference[mine] > 1e-3).all()
    assert (difference[~mine] == 0).all()


def test_padding_gives_the_loss_of_packing():
    model, examples = make_case("seed_opt", "sdpa")
    with torch.no_grad():
        padded, packed = (model(**c(examples)).loss for c in (PaddingCollator(PAD), PackingCollator(PAD, 128)))
    torch.testing.assert_close(padded, packed, rtol=1e-5, atol=1e-5)


def test_rows_are_full_at_captions_lengths():
    rng = random.Random(1)
    for count in (64, 256, 1024):
        lengths = [34 + 5 + rng.randint(2, 14) for _ in range(count)]  # an image, the prompt and a caption
        rows = pack(lengths, 512)
        assert sorted(number for row in rows for number in row) == list(range(count))
        sums = [sum(lengths[number] for number in row) for row in rows]
        assert max(sums) <= 512
        assert sum(sums) / (len(rows) * max(sums)) >= 0.97
        assert rows == pack(lengths, 512)


def test_rows_of_mixed_lengths():
    assert pack([], 10) == []
    assert pack([10, 10], 10) == [[0], [1]]
    assert pack([6, 5, 4, 3], 10) in ([[0, 3], [1, 2]], [[0, 2], [1, 3]])
    rng = random.Random(2)
    lengths = [rng.randint(10, 500) for _ in range(300)]
    rows = pack(lengths, 512)
    assert max(sum(lengths[number] for number in row) for row in rows) <= 512
    assert len(rows) <= 11 / 9 * sum(lengths) / 512 + 4  # the bound of first-fit decreasing, by the total


def test_an_example_longer_than_a_row_is_named():
    long = {"input_ids": [5] * 20, "labels": [5] * 20, "name": "train.parquet, row 7"}
    with pytest.raises(ValueError, match="train.parquet, row 7 has 20 tokens, but a row takes 16"):
        PackingCollator(PAD, 16)([{"input_ids": [5], "labels": [5]}, long])
