"""The text corpus from tiny packages of our own: what is written of a synset, a word, a chapter, a picture's names."""

import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makers.iconify import PackageError
from makers.text_corpus import (
    TEXT_PACKAGES,
    Document,
    caption_documents,
    pieces,
    prose_documents,
    webster_documents,
    wordnet_documents,
)
from run_example import run_script

NOUNS = """  1 This line is the licence.
00000010 13 n 01 fruit 0 002 ~ 00000020 n 0000 ~ 00000030 n 0000 | the ripened part of a seed plant
00000020 13 n 02 apple 0 orchard_apple 1 002 @ 00000010 n 0000 %p 00000030 n 0000 | round fruit; "one a day"; "he ate"
00000030 13 n 01 core 0 000 | the middle
00000040 09 n 01 happiness 0 001 ! 00000050 n 0101 | joy
00000050 09 n 01 sadness 0 000 | sorrow
"""
ADJECTIVES = "00000060 00 a 01 red(p) 0 000 | of the color of blood  \n"


@pytest.fixture
def cache(tmp_path):
    """A cache folder that holds the four packages, so that nothing is fetched."""
    folders = {}
    for source, package in TEXT_PACKAGES.items():
        folder = tmp_path / "cache" / f"{package.package.lstrip('@').replace('/', '-')}-{package.version}"
        folder.mkdir(parents=True)
        (folder / "package.json").write_text("{}")
        folders[source] = folder
    (folders["wordnet"] / "dict").mkdir()
    for name, text in {"noun": NOUNS, "verb": "", "adj": ADJECTIVES, "adv": ""}.items():
        (folders["wordnet"] / "dict" / f"data.{name}").write_text(text)
    words = {"apple": "The fleshy pome or fruit of a tree. " * 20, "core": "See Heart of the matter.", "zzz": "A" * 99}
    (folders["webster"] / "dictionary.json").write_text(json.dumps(words))
    for source in ("moby-dick", "sotu"):
        (folders[source] / "data").mkdir()
        (folders[source] / "data" / "chapter_1.txt").write_text("Call me Ishmael.\n\nSome years ago. " * 100)
    return folders


def row(**changes):
    return {
        "captions": ["red apple", "red apple, fruit, gala"],
        "name": "red apple",
        "names": ["red apple"],
        "keywords": ["fruit", "gala", "tree"],
        "concept": "red apple",
        "category": "Food & Drink",
        "subcategory": "food-fruit",
        "license": "MIT",
        "split": "train",
    } | changes


def write_rows(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_synset_is_told_with_examples_and_relations(cache):
    texts = [document.text for document in wordnet_documents(cache["wordnet"])]
    assert "fruit: the ripened part of a seed plant. Kinds of fruit: apple, core." in texts
    apple = "apple, orchard apple: round fruit. One a day. He ate. Apple is a kind of fruit. Parts of apple: core."
    assert apple in texts and "A photo of apple, fruit" in texts
    assert "happiness: joy. The opposite of happiness is sadness." in texts
    assert "red: of the color of blood." in texts, "the position marker (p) is no part of the word"
    assert not any("happiness," in text for text in texts), "happiness cannot be drawn"


def test_what_is_no_wordnet_is_named(cache):
    (cache["wordnet"] / "dict" / "data.noun").write_text("00000010 not a synset\n")
    with pytest.raises(PackageError, match=r"data\.noun"):
        list(wordnet_documents(cache["wordnet"]))


def test_webster_keeps_known_words_and_cuts_at_a_sentence(cache):
    found = list(webster_documents(cache["webster"], ["apple", "core", "pear"]))
    assert len(found) == 1 and found[0].text.startswith("apple: The fleshy pome")
    assert found[0].text.endswith("of a tree.") and 320 <= len(found[0].text) < 400


@pytest.mark.parametrize("length", [5, 40, 1000])
def test_pieces_lose_nothing(length):
    text = 'He said "no." Then he left! Why? Nobody knows; it was 3.5 miles away. The end'
    found = list(pieces(text, length))
    assert " ".join(found) == text
    assert all(piece[-1] in '.!?"' and len(piece) >= length for piece in found[:-1])


def test_prose_is_cut_into_pieces(cache):
    found = list(prose_documents(cache["sotu"], "sotu"))
    assert len(found) > 1 and {document.group for document in found} == {"sotu chapter_1"}
    assert all(document.text.endswith("go.") or document.text.endswith("Ishmael.") for document in found)


def test_captions_come_in_the_words_of_the_prompts_once(tmp_path):
    path = write_rows(tmp_path / "train.parquet", [row(), row(license="Apache-2.0")])
    found = list(caption_documents(path, "captions-1"))
    texts = [document.text for document in found]
    assert len(texts) == len(set(texts)) and {document.license for document in found} == {"Apache-2.0, MIT"}
    assert {"A photo of red apple", "Generate an image red apple", "red apple: fruit, gala, tree."} <= set(texts)
    assert "Red apple belongs to food & drink, food fruit." in texts
    shuffled = {text for text in texts if text.startswith("A photo of red apple, ")}
    allowed = {f"A photo of red apple, {a}, {b}" for a in row()["keywords"] for b in row()["keywords"] if a != b}
    assert shuffled <= allowed and len(shuffled) > 1


def test_captions_of_other_splits_are_refused(tmp_path):
    path = write_rows(tmp_path / "mixed.parquet", [row(), row(split="test_concept")])
    with pytest.raises(ValueError, match="test_concept"):
        list(caption_documents(path, "captions-1"))
    path = write_rows(tmp_path / "other.parquet", [{"captions": ["x"]}])
    with pytest.raises(ValueError, match="keywords"):
        list(caption_documents(path, "captions-1"))


def test_the_split_holds_out_whole_groups():
    rng = random.Random(0)
    groups = [f"concept {rng.random()}" for _ in range(5000)]
    held_out = {group for group in groups if Document("x", "a", "MIT", group).held_out}
    assert 50 < len(held_out) < 160, "about 2 % of 5000"
    assert all(Document("other words", "b", "CC0-1.0", group).held_out for group in held_out)


def test_the_corpus_is_built_from_the_packages(cache, tmp_path, capsys):
    path = write_rows(tmp_path / "train.parquet", [row(name=f"apple {n}", concept=f"apple {n}") for n in range(100)])
    options = ["--captions", path, "--output", tmp_path / "text", "--cache-dir", tmp_path / "cache"]
    run_script("seed_tiny/build_text.py", *options)
    parts = {name: pq.read_table(tmp_path / "text" / f"{name}.parquet").to_pylist() for name in ("train", "validation")}
    assert {"text", "source", "license"} == parts["train"][0].keys()
    sources = {item["source"] for part in parts.values() for item in part}
    assert sources == {*TEXT_PACKAGES, "captions-1"}
    named = {
        name: {re.search(r"apple \d+", item["text"])[0] for item in part if re.search(r"apple \d+", item["text"])}
        for name, part in parts.items()
    }
    assert not named["train"] & named["validation"], "a concept is held out with all its captions"
    assert len(named["train"] | named["validation"]) == 100
    assert "wordnet" in capsys.readouterr().out
