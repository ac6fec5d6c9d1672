"""The `evaluate` metrics: loaded from their folders, against pycocoevalcap itself and against values by hand."""

import math
import random
import shutil
from collections import Counter
from pathlib import Path

import evaluate
import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

import seed.evaluation

FOLDER = Path(seed.evaluation.__file__).parent / "hub_metrics"
PREDICTIONS = ["A red apple.", "", "dog's T-shirt isn't\nhere", "the the the cat"]
REFERENCES = [["red apple", "an apple, red"], ["cat"], ["the dog's t-shirt isn't here"], ["the black cat", "cat"]]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    return lambda name: evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path))


def without_java(monkeypatch):
    monkeypatch.setenv("PATH", "")


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java: the metric's own words are tested below")
def test_with_java_the_scores_are_pycocoevalcaps_own(load):
    result = load("coco_captions").compute(predictions=PREDICTIONS, references=REFERENCES, per_caption=True)
    assert result["tokenizer"] == "ptb"
    tokenizer = PTBTokenizer()
    targets = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(REFERENCES)})
    found = tokenizer.tokenize({i: [{"caption": text.replace("\n", " ")}] for i, text in enumerate(PREDICTIONS)})
    assert found[0] == ["a red apple"]
    cider, each = Cider().compute_score(targets, found)
    assert result["cider"] == pytest.approx(cider)
    assert result["cider_each"] == pytest.approx(each.tolist())
    assert result["meteor"] == pytest.approx(Meteor().compute_score(targets, found)[0])
    # Words of each caption that a reference has, no more often than there, of all words; times the brevity penalty,
    # for 13 words where the references nearest in length have 3 + 1 + 7 + 3.
    words = [Counter(found[number][0].split()) for number in range(4)]
    hits = 0
    for number, counts in enumerate(words):
        known = [Counter(text.split()) for text in targets[number]]
        hits += sum(min(count, max(other[word] for other in known)) for word, count in counts.items())
    assert sum(map(Counter.total, words)) == 13
    assert result["bleu_1"] == pytest.approx(hits / 13 * math.exp(1 - 14 / 13), rel=1e-6)
    assert result["spice"] is None and "stanford-corenlp-3.6.0" in result["missing"]["spice"]


def test_similarity_of_drawings_by_hand(load):
    right, left, up = [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]
    # Of the first prompt two real pictures, right and up: their mean is (0.5, 0.5).
    references = [[0.5, 0.5], left, up]
    metric = load("drawing_similarity")
    result = metric.compute(predictions=[right, left, left], references=references, per_example=True)
    assert result["each"] == pytest.approx([0.5, 1.0, 0.0]) and result["similarity"] == pytest.approx(0.5)
    # What the others look like beside each prompt's pictures: (-0.5, -0.5), (-1, 1), (0, 0).
    assert result["shuffled_each"] == pytest.approx([-0.5, 0.0, 0.0])
    assert result["shuffled"] == pytest.approx(-1 / 6) and "normalized" not in result
    result = metric.compute(predictions=[right, left, left], references=references, upper=[right, left, up])
    assert result["upper"] == pytest.approx(2.5 / 3)
    assert result["normalized"] == pytest.approx((0.5 + 1 / 6) / (2.5 / 3 + 1 / 6))
    # An upper end that is no better than the control leaves nothing to measure by.
    same = metric.compute(predictions=[right, right], references=[right, right], upper=[right, right])
    assert same["normalized"] is None
    with pytest.raises(ValueError, match="needs at least 2"):
        metric.compute(predictions=[right], references=[right])
    with pytest.raises(ValueError, match="upper end's features are .2, 2., the drawings' .3, 2."):
        metric.compute(predictions=[right] * 3, references=[right] * 3, upper=[right] * 2)
    with pytest.raises(ValueError, match="references: some features are NaN"):
        metric.compute(predictions=[right] * 2, references=[right, [math.nan, 0.0]])


def test_without_java_the_result_says_so(load, monkeypatch):
    without_java(monkeypatch)
    metric = load("coco_captions")
    result = metric.compute(predictions=["a red apple.", "cat"], references=[["red Apple"], ["cat", "a cat"]])
    assert result["tokenizer"] == "plain"
    assert result["meteor"] is None and result["spice"] is None
    for name in ("meteor", "tokenizer ptb", "spice"):
        assert "Java was not found" in result["missing"][name]
    # "a red apple" for "red apple": 3 words, 2 of them right; "cat": 1 of 1. 4 words, 3 right, none too few.
    assert result["bleu_1"] == pytest.approx(3 / 4, rel=1e-6)
    # Longest common subsequence 2 of 3 and 2 of 2, beta 1.2; and 1.
    precision, recall = 2 / 3, 1
    f = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert result["rouge_l"] == pytest.approx((f + 1) / 2)
    with pytest.raises(ValueError, match="Java was not found"):
        metric.compute(predictions=["cat"], references=[["cat"]], tokenizer="ptb")
    with pytest.raises(ValueError, match="no references"):
        metric.compute(predictions=["cat"], references=[[]])


def test_name_accuracy_by_hand(load):
    metric = load("name_accuracy")
    names = [["red apple", "apple"], ["cat"], ["t-shirt"], ["dog"]]
    result = metric.compute(predictions=["Apple.", " CAT  ", "t shirt", "hot dog"], references=names, per_example=True)
    assert result == {"name_accuracy": 0.5, "each": [1.0, 1.0, 0.0, 0.0]}
    with pytest.raises(ValueError, match="no names"):
        metric.compute(predictions=["cat"], references=[[]])


def test_gqa_accuracy_by_hand(load):
    result = load("gqa_accuracy").compute(
        predictions=["Yes.", "two", "no", "red "], references=["yes", "2", "no", "red"], per_example=True
    )
    assert result == {"gqa_accuracy": 0.75, "each": [1.0, 0.0, 1.0, 1.0]}


def consensus(prediction, answers):
    """The published formula, one person left out at a time."""
    total = 0
    for person in range(len(answers)):
        others = answers[:person] + answers[person + 1 :]
        total += min(1, sum(other == prediction for other in others) / 3)
    return total / len(answers)


def test_vqa_accuracy_is_the_published_consensus(load):
    rng = random.Random(0)
    answers = [[rng.choice(["red", "blue", "green"]) for _ in range(10)] for _ in range(50)]
    answers += [["red"] * count + ["blue"] * (10 - count) for count in range(11)]
    result = load("vqa_accuracy").compute(predictions=["red"] * len(answers), references=answers, per_example=True)
    assert result["each"] == pytest.approx([consensus("red", given) for given in answers])
    assert result["vqa_accuracy"] == pytest.approx(sum(result["each"]) / len(answers))
    # What the literature quotes: 0, 0.3, 0.6, 0.9 and 1 for 0, 1, 2, 3 and more who agree.
    assert result["each"][50:55] == pytest.approx([0, 0.3, 0.6, 0.9, 1.0])


# What the VQA server makes of an answer, worked out from its published description.
NORMALIZED = {
    "The two dogs.": "2 dogs",
    "none": "0",
    "A  cat\nand an owl": "cat and owl",
    "dont": "don't",
    "Couldnt've": "couldn't've",
    "hed've": "he'd've",
    "somebodyd've": "somebody'd've",
    "oclock": "o'clock",
    "t-shirt": "t shirt",
    "yes!": "yes",  # a mark that touches no space becomes one, which is then trimmed
    "red, white": "red white",
    "1,000": "1000",
    "3.5": "3.5",
    "St. John": "st john",
    "she's": "she's",
    "either/or": "either or",
}


def test_answers_are_normalized_as_the_vqa_server_does(load):
    metric = load("vqa_accuracy")
    result = metric.compute(
        predictions=list(NORMALIZED), references=[[right] for right in NORMALIZED.values()], per_example=True
    )
    assert dict(zip(NORMALIZED, result["each"])) == dict.fromkeys(NORMALIZED, 1.0)
    others = [["3 dogs"], ["1"], ["cats"]]
    assert metric.compute(predictions=list(NORMALIZED)[:3], references=others)["vqa_accuracy"] == 0


def test_a_few_answers_are_each_right(load):
    result = load("vqa_accuracy").compute(
        predictions=["feline", "cat", "dog"], references=[["cat", "feline"], ["cat"], ["cat"]], per_example=True
    )
    assert result["each"] == [1.0, 1.0, 0.0]
