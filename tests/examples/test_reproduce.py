"""The scripts that reproduce the paper's tables: every `seed evaluate` command in them is one that the parser takes."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from seed.commands import evaluate
from seed.commands.main import make_parser

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"


def commands(script, *arguments, tmp_path):
    """The arguments of each `seed` call of a script, recorded by a stand-in for it."""
    log, stand_in = tmp_path / "calls.jsonl", tmp_path / "seed"
    stand_in.write_text(
        f"#!/usr/bin/env python3\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    stand_in.chmod(0o755)
    subprocess.run(
        f"PATH={shlex.quote(str(tmp_path))}:$PATH sh {shlex.quote(str(SCRIPTS / script))} {shlex.join(arguments)}",
        shell=True,
        check=True,
    )
    return [make_parser().parse_args(json.loads(line)) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("bidirectional", [None, "my blip2"])
def test_table_1(tmp_path, bidirectional):
    extra = [bidirectional] if bidirectional else []
    calls = commands("table1_retrieval.sh", "a model", "data", "out", *extra, tmp_path=tmp_path)
    assert [call.output for call in calls] == ["out/flickr30k", "out/coco"]
    for call in calls:
        assert (call.run, call.model, call.bidirectional) == (evaluate.run_retrieval, "a model", bidirectional)
        assert (call.texts, call.split) == ("captions", "test")


def test_table_2(tmp_path):
    calls = commands("table2_clip_similarity.sh", "model", "data", "out", tmp_path=tmp_path)
    assert [call.image_root for call in calls] == ["data/flickr30k-images", "data/coco"]
    assert all(call.judge == "openai/clip-vit-large-patch14" and call.limit is None for call in calls)


def test_seed_tiny(tmp_path):
    calls = commands("seed_tiny.sh", "emoji", "out", tmp_path=tmp_path)
    tasks = [call.task for call in calls]
    assert tasks == ["retrieval"] * 5 + ["reconstruction"] * 3
    assert all(call.model is None and call.data == "emoji" for call in calls)
    assert calls[5].prefix_lengths == (1, 2, 4, 8, 16)


@pytest.mark.parametrize("model", [None, "a model"])
def test_seed_tiny_language(tmp_path, model):
    extra = [model] if model else []
    calls = commands("seed_tiny_language.sh", "emoji", "questions", "out", *extra, tmp_path=tmp_path)
    assert [call.task for call in calls] == ["caption"] * 3 + ["vqa"] * 4 + ["draw"] * 2
    assert all(call.model == model for call in calls)
    assert [call.data for call in calls] == ["emoji"] * 3 + ["questions"] * 4 + ["emoji"] * 2
    assert calls[6].train_split == "easy_vqa_train" and calls[7].also_real == ["val_style"]


def test_captioning_and_vqa(tmp_path):
    calls = commands("captioning_and_vqa.sh", "model", "data", "out", tmp_path=tmp_path)
    assert [call.output for call in calls] == ["out/coco", "out/vqav2", "out/gqa"]
    assert (calls[0].image_root, calls[0].num_beams, calls[0].split) == ("data/coco", 5, "test")
    assert [call.length_penalty for call in calls] == [1.0, -1.0, -1.0]
