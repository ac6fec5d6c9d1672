"""`seed evaluate text` against likelihoods computed here, token by token, from the model's own scores."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from makers.text_model import train_byte_level_tokenizer
from tiny_repository import make_seed_model
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from seed import SeedProcessor
from seed.commands.main import execute, make_parser
from seed.evaluation.perplexity import TextScorer, TextSet
from seed.modeling_seed_language import SeedOPTForCausalLM

TEXTS = ["apple: a round fruit.", "A photo of red apple", "Ähren.", "The opposite of happiness is sadness. " * 3]


@pytest.fixture
def base(tmp_path):
    """A random OPT with more rows than its tokenizer uses, and few positions."""
    torch.manual_seed(0)
    tokenizer = train_byte_level_tokenizer(TEXTS, 280)
    config = OPTConfig(
        vocab_size=len(tokenizer) + 8, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=1, ffn_dim=16,
        num_attention_heads=2, max_position_embeddings=48, bos_token_id=0, eos_token_id=0, pad_token_id=1, init_std=0.5,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def extended(base, tmp_path):
    """The same model with visual tokens."""
    seed_model = make_seed_model()
    tokenizer = AutoTokenizer.from_pretrained(base)
    text_model = OPTForCausalLM.from_pretrained(base)
    model = SeedOPTForCausalLM.from_text_model(text_model, seed_model, text_vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "extended")
    SeedProcessor.extend_tokenizer(tokenizer, seed_model.config.codebook_size).save_pretrained(tmp_path / "extended")
    return tmp_path / "extended"


def run(*arguments):
    args = make_parser().parse_args(["evaluate", "text", "--device", "cpu", *map(str, arguments)])
    return execute(args)


def reference(folder, text, context):
    """One forward per token, each with as much before it as the windows give; words only."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    total = 0.0
    for position in range(1, len(ids)):
        windows = max(0, math.ceil((position + 1 - context) / (context - context // 2)))
        start = windows * (context - context // 2)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:position]])).logits[0, -1]
        total -= logits[: len(tokenizer)].log_softmax(-1)[ids[position]].item()
    return total, len(ids) - 1


@pytest.mark.parametrize("context", [8, 11, 48])
def test_scores_are_the_sums_of_single_tokens(base, context):
    nll, tokens, visual = TextScorer.from_pretrained(base, context=context).score(TEXTS, batch_size=3)
    for index, text in enumerate(TEXTS):
        expected, count = reference(base, text, context)
        assert tokens[index] == count
        assert nll[index] == pytest.approx(expected, rel=1e-4)
    assert not visual.any()


def test_the_verb_scores_both_models_by_source(base, extended, tmp_path, capsys):
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": TEXTS, "source": ["a", "b", "b", "a"]}), data)
    run("--model", extended, "--base", base, "--data", data, "--output", tmp_path / "out", "--batch-size", 2)
    report = json.loads((tmp_path / "out" / "text.json").read_text())
    assert report["metrics"].keys() == {"all", "a", "b"}
    losses = [reference(base, text, 48) for text in TEXTS]
    for source, members in {"all": TEXTS, "a": [TEXTS[0], TEXTS[3]], "b": [TEXTS[1], TEXTS[2]]}.items():
        nll = sum(losses[TEXTS.index(text)][0] for text in members)
        tokens = sum(losses[TEXTS.index(text)][1] for text in members)
        for label in ("model", "base"):  # an extension without training changes no word's score
            found = report["metrics"][source][label]
            assert found["tokens"] == tokens and found["documents"] == len(members)
            assert found["token_perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
            words = sum(len(text.split()) for text in members)
            assert found["word_perplexity"] == pytest.approx(math.exp(nll / words), rel=1e-4)
            size = len("".join(members).encode("utf-8"))
            assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-4)
        assert 0 < report["metrics"][source]["model"]["visual_probability"] < 1
        assert report["metrics"][source]["base"]["visual_probability"] == 0
    predictions = pq.read_table(tmp_path / "out" / "text_predictions.parquet").to_pylist()
    assert [row["text"] for row in predictions] == TEXTS and "change, %" in capsys.readouterr().out


def test_visual_probability_is_that_of_the_full_softmax(extended):
    _, tokens, visual = TextScorer.from_pretrained(extended).score(TEXTS[:1])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(extended), AutoTokenizer.from_pretrained(extended)
    ids = tokenizer(TEXTS[0])["input_ids"]
    with torch.no_grad():
        probabilities = model(torch.tensor([ids[:-1]])).logits[0].softmax(-1)
    assert visual[0] == pytest.approx(probabilities[:, model.config.text_vocab_size :].sum().item(), rel=1e-4)
    with pytest.raises(ValueError, match="visual tokens"):
        TextScorer.from_pretrained(extended).score(["a <img> b"])


def test_text_files_and_bad_ones(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\n two \nthree\n")
    assert TextSet.load(lines).texts == ["one", " two ", "three"]
    assert len(TextSet.load(lines, limit=2).texts) == 2
    table = tmp_path / "rows.jsonl"
    table.write_text('{"caption": "x"}\n')
    assert TextSet.load(table, column="caption").texts == ["x"]
    for path, content, message in [
        (table, '{"caption": "x"}\n', "'text'"),
        (table, "{broken", "rows.jsonl"),
        (tmp_path / "bad.parquet", "no parquet", "bad.parquet"),
        (lines, "\n\n", "no text"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            TextSet.load(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        TextSet.load(tmp_path / "missing.txt")
