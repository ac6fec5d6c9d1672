"""`seed evaluate caption | vqa | draw`: the arithmetic by hand, the commands against single calls of the model."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from makers.questions import write_questions
from PIL import Image
from tiny_language import make_language_repository
from tiny_repository import make_stable_diffusion, pictures
from toy_pictures import png
from transformers import AutoModelForCausalLM, GenerationConfig

from seed import SeedModel, SeedProcessor
from seed.commands.main import execute, make_parser
from seed.data.questions import QuestionFile
from seed.data.sheets import CELL, SheetCell, draw_sheet, sheet_rows
from seed.evaluation.captioning import training_names
from seed.evaluation.drawing import Concepts, judge_pictures, judge_prompts, oracle
from seed.evaluation.image_tokenizer import EvaluatedTokenizer
from seed.evaluation.judge import EfficientNetJudge
from seed.evaluation.language_model import EvaluatedLanguageModel
from seed.evaluation.pictures import PictureSet
from seed.evaluation.question_answering import TrainingAnswers
from seed.evaluation.scores import choose, others

NAMES = ["red square", "blue circle", "green triangle", "Red  square", "dog", "cat"]


def run(task, *arguments):
    return make_parser().parse_args(["evaluate", task, "--device", "cpu", *map(str, arguments)])


def evaluate(task, output, *arguments):
    args = run(task, "--output", output, *arguments)
    assert execute(args) == 0
    return json.loads((output / f"{task}.json").read_text()), pq.read_table(
        output / f"{task}_predictions.parquet"
    ).to_pylist()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    make_language_repository(folder)
    make_stable_diffusion().save_pretrained(folder / "decoder")  # with its text encoder
    return folder


@pytest.fixture(scope="module")
def language(repository):
    return AutoModelForCausalLM.from_pretrained(repository).eval(), SeedProcessor.from_pretrained(repository)


@pytest.fixture
def emoji(tmp_path):
    """Parquet files `train` and `test` of the same concepts in other pictures."""
    for split, seed in (("train", 5), ("test", 6)):
        rows = [
            {
                "id": f"{split}{number}",
                "image": {"bytes": png(image), "path": None},
                "captions": [name, f"a {name}"],
                "name": name,
                "names": [name, f"the {name}"],
            }
            for number, (name, image) in enumerate(zip(NAMES, pictures(6, seed=seed)))
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    return tmp_path


def answer_alone(language, inputs, max_new_tokens):
    model, processor = language
    ids = model.generate(
        **inputs, generation_mode="text", max_new_tokens=max_new_tokens, num_beams=5, length_penalty=0.0
    )
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_captions(repository, language, emoji, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")  # no Java: seconds saved, and the report has to say so
    output = tmp_path / "out"
    options = ["--model", repository, "--data", emoji, "--split", "test", "--train-data", emoji]
    report, rows = evaluate("caption", output, *options, "--train-split", "train", "--batch-size", 4)
    images = pictures(6, seed=6)
    for row, image in zip(rows, images):
        assert row["language model"] == answer_alone(language, language[1].caption_prompts(images=[image]), 32)
    assert len({row["language model"] for row in rows}) > 1  # else this test would show little

    # The retrieval captioner: the training name nearest to the codes' own feature, one picture and one name at a time.
    tokenizer = EvaluatedTokenizer(repository)
    names = ["red square", "blue circle", "green triangle", "dog", "cat"]
    for row in rows:
        feature = tokenizer.model.get_image_features(codes=torch.tensor([row["codes"]]))
        scores = [torch.cosine_similarity(feature, tokenizer.encode_texts([name])).item() for name in names]
        assert row["nearest training name"] == names[int(np.argmax(scores))]
    named = np.mean([row["nearest training name"].split() == row["names"][0].lower().split() for row in rows])
    assert report["results"]["nearest training name"]["name_accuracy"] == pytest.approx(named)
    assert report["names_to_choose_from"] == 5

    # The control: captions of pictures of other names.
    for row in rows:
        others = [r["language model"] for r in rows if r["names"][0].split() != row["names"][0].split()]
        assert row["shuffled"] in others
    ours, theirs = ([row[f"{label} CIDEr"] for row in rows] for label in ("language model", "nearest training name"))
    assert report["results"]["language model"]["cider"] == pytest.approx(np.mean(ours))
    assert report["differences"]["cider"]["mean"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert report["results"]["language model"]["meteor"] is None
    assert Image.open(output / "captions.png").width > 8 * CELL
    printed = capsys.readouterr().out
    assert "Captions of 6 of 6 pictures" in printed and "No meteor: Java was not found" in printed


def questions_of(images, answers):
    rows = []
    for number, image in enumerate(images):
        shared = {"id": str(number), "image": {"bytes": png(image), "path": None}, "license": "", "attribution": ""}
        for kind, question in (("name", "What is it?"), ("colour", "Which colour is the circle?")):
            rows.append(shared | {"kind": kind, "question": question, "answers": answers[len(rows)]})
    return rows


def test_answers(repository, language, tmp_path, capsys):
    images, processor = pictures(4, seed=6), language[1]
    asked = questions_of(images, [["?"]] * 8)
    alone = [
        answer_alone(language, processor.question_prompts([row["question"]], images=[images[int(row["id"])]]), 16)
        for row in asked
    ]
    assert len(set(alone)) > 2
    # What the model says is right for the names and for one colour of four.
    answers = [[text or "nothing"] if row["kind"] == "name" else ["mauve"] for row, text in zip(asked, alone)]
    answers[1] = ["mauve", alone[1]]
    write_questions(questions_of(images, answers), tmp_path / "test.parquet")
    train = questions_of(images, [["a dog"], ["mauve"]] * 4)
    write_questions(train, tmp_path / "train.parquet")
    options = ["--model", repository, "--data", tmp_path, "--split", "test", "--batch-size", 3]
    report, rows = evaluate("vqa", tmp_path / "out", *options, "--train-data", tmp_path, "--train-split", "train")
    assert [row["language model"] for row in rows] == alone
    results = report["results"]
    nothing = sum(not text for row, text in zip(asked, alone) if row["kind"] == "name")
    assert results["language model"]["name"]["vqa_accuracy"] == 1 - nothing / 4
    assert results["language model"]["colour"]["vqa_accuracy"] == 1 / 4
    assert results["language model"]["overall"]["vqa_accuracy"] == (4 - nothing + 1) / 8
    assert results["language model"]["colour"]["exact_match"] == 0  # the first of two answers is "mauve"
    assert results["most frequent answer to the question"]["colour"]["vqa_accuracy"] == 1
    assert results["most frequent answer to the question"]["name"]["vqa_accuracy"] == 0
    assert results["majority answer"]["overall"]["vqa_accuracy"] == 0  # "a dog": first in the alphabet
    # Without looking: each answer is the model's to the same question about another picture.
    for row in rows:
        elsewhere = [text for text, other in zip(alone, asked) if other["question"] == row["question"]]
        assert row["codes of another picture"] in elsewhere
    assert "8 of 8 questions" in capsys.readouterr().out


def test_questions_about_broken_pictures_are_left_out_and_counted(repository, tmp_path, capsys):
    asked = questions_of(pictures(4, seed=6), [["a dog"]] * 8)
    for row in asked[2:4]:
        row["image"] = {"bytes": b"no picture", "path": None}
    write_questions(asked, tmp_path / "test.parquet")
    options = ["--model", repository, "--data", tmp_path, "--batch-size", 1]
    report, rows = evaluate("vqa", tmp_path / "out", *options)
    assert [row["id"] for row in rows] == ["0", "0", "2", "2", "3", "3"]
    write_questions(asked[:2] + asked[4:], tmp_path / "test.parquet")
    without, expected = evaluate("vqa", tmp_path / "without", *options)
    assert rows == expected and report["results"] == without["results"]
    counts = ("questions", "of", "pictures", "skipped", "skipped_questions")
    assert [report["data"][name] for name in counts] == [6, 8, 3, 1, 2]
    assert "about 3 pictures (1 skipped, with 2 questions)" in capsys.readouterr().out
    write_questions(asked[2:4], tmp_path / "test.parquet")
    args = run("vqa", *options, "--output", tmp_path / "none")
    with pytest.raises(ValueError, match="no picture that can be used. 0 of 1 images used"):
        execute(args)


def test_training_answers_by_hand(tmp_path):
    rows = questions_of(pictures(3), [["dog"], ["red"], ["cat"], ["red"], ["cat"], ["blue"]])
    write_questions(rows, tmp_path / "train.parquet")
    training = TrainingAnswers(QuestionFile(tmp_path / "train.parquet"))
    assert training.majority == "cat"  # as often as "red", and before it
    assert training.question_only({"question": " what is  IT?", "kind": "name"}) == "cat"
    assert training.question_only({"question": "Which colour is the square?", "kind": "colour"}) == "red"
    assert training.question_only({"question": "How many?", "kind": "number"}) == "cat"


def test_judged_prompts_by_hand():
    # Cat: two pictures along x and y; dog: one along z; sun: one along w.
    eye = np.eye(4)
    concepts = Concepts.of(["cat", "dog", "Cat", "sun"], eye[[0, 2, 1, 3]])
    assert concepts.names == ["cat", "dog", "sun"] and concepts.counts.tolist() == [2, 1, 1]
    drawings = np.array([[0.6, 0.0, 0.8, 0.0], [0.0, 0.0, 0.6, 0.8]])
    judged = judge_prompts(drawings, np.array([0, 1]), concepts)
    # Mean cosine: of the first with the cats (0.6 + 0) / 2; of the second with the dog 0.6.
    np.testing.assert_allclose(judged.similarity, [0.3, 0.6])
    # The cats with the second drawing; the dog with the first.
    np.testing.assert_allclose(judged.shuffled, [0.0, 0.8])
    # The first is nearer to the dog (0.8) than to the cats' direction (0.6 / sqrt 2); the second to the sun (0.8).
    assert judged.ranks.tolist() == [1, 1]
    assert judged.top[:, 0].tolist() == [1, 2]


def test_the_oracle_takes_the_best_training_picture_and_leaves_it_out():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [f"name {number % 4}" for number in range(11)] + ["alone"]
    concepts = Concepts.of(names, features)
    numbers = np.array([concepts.names.index(name) for name in names])
    training = np.array([0, 1, 2, 3, 4, 5, 11])
    own = np.array([0, 2, 4])
    judged, chosen = oracle(features[training], numbers[training], own, concepts)
    for place, concept in enumerate(own):
        scores = []
        for picture in training:
            rest = [i for i in range(12) if numbers[i] == concept and i != picture]
            scores.append(np.mean([features[i] @ features[picture] for i in rest]) if rest else -np.inf)
        assert chosen[place] == int(np.argmax(scores))
        assert judged.similarity[place] == pytest.approx(max(scores))
    assert training[chosen[2]] != 11  # its only picture cannot stand for itself


def test_drawings(repository, language, emoji, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EfficientNetJudge, "size", 64)
    options = ["--model", repository, "--data", emoji, "--split", "test", "--num-inference-steps", 2]
    options += ["--guidance-scale", 2, "--temperature", 0, "--judge-cache", tmp_path / "cache"]
    with_training = ["--train-data", emoji, "--train-split", "train"]
    report, rows = evaluate("draw", tmp_path / "out", *options, *with_training, "--batch-size", 2)
    assert [row["prompt"] for row in rows] == ["red square", "blue circle", "green triangle", "dog", "cat"]
    model, processor = language
    for row in rows:
        inputs = processor.drawing_prompts([row["prompt"]])
        ids = model.generate(**inputs, generation_mode="image", do_sample=False)
        alone = ids[0, inputs["input_ids"].shape[1] :][:32] - processor.first_code_token_id
        assert row["codes"] == alone.tolist()
    assert len({tuple(row["codes"]) for row in rows}) > 1
    data, results = report["data"], report["results"]
    assert data["real_pictures"] == 12 and data["concepts"] == 5 and data["seen_in_training"] == 5
    # 1 is Stable Diffusion from the prompt, 0 the shuffled drawings; there is no scale where it is no better.
    lowest, highest = results["shuffled"]["similarity"], results["Stable Diffusion from the prompt"]["similarity"]
    if highest - lowest > 1e-3:
        expected = (results["language model"]["similarity"] - lowest) / (highest - lowest)
        assert results["language model"]["normalized"] == pytest.approx(expected)
    else:
        assert results["language model"]["normalized"] is None
    mean = np.mean([row["language model similarity"] for row in rows])
    assert results["language model"]["similarity"] == pytest.approx(mean)
    assert results["nearest training picture (oracle)"]["similarity"] > results["shuffled"]["similarity"]
    assert Image.open(tmp_path / "out" / "drawings.png").height > CELL
    assert "Drawings of 5 of 5 names" in capsys.readouterr().out

    # From kept features, another batch size and fewer prompts: the same drawings, judged the same.
    assert len(list((tmp_path / "cache").iterdir())) == 2
    again, some = evaluate("draw", tmp_path / "again", *options, "--also-real", "train", "--limit", 3)
    by_prompt = {row["prompt"]: row for row in rows}
    assert len(some) == 3 and again["data"]["real_pictures"] == 12 and again["data"]["seen_in_training"] is None
    for row in some:
        before = by_prompt[row["prompt"]]
        assert row["codes"] == before["codes"]
        assert row["language model similarity"] == pytest.approx(before["language model similarity"], abs=1e-3)


class ShadeJudge:
    """The mean of each picture's three channels."""

    description = {"name": "shade"}

    def features(self, images):
        return torch.tensor([np.asarray(image).mean(axis=(0, 1)) for image in images])


def test_kept_features_are_those_of_the_pictures_as_they_are_now(tmp_path):
    folder, cache = tmp_path / "pictures", tmp_path / "cache"
    folder.mkdir()

    def judged(color, name):
        Image.new("RGB", (4, 4), color).save(folder / "a.png")
        (folder / "a.txt").write_text(name)
        names, features = judge_pictures(PictureSet(folder), ShadeJudge(), 2, cache)
        return *names, *features[0].tolist()

    assert judged("red", "a rose") == judged("red", "a rose") == ("a rose", 255, 0, 0)
    assert len(list(cache.iterdir())) == 1
    assert judged("blue", "a rose") == ("a rose", 0, 0, 255), "the same path, another picture"
    assert judged("blue", "the sky") == ("the sky", 0, 0, 255), "the same picture, another name"
    (folder / "gone.txt").write_text("gone")
    Image.new("RGB", (4, 4)).save(folder / "gone.png")
    split = PictureSet(folder)
    (folder / "gone.png").unlink()
    assert judge_pictures(split, ShadeJudge(), 2, cache)[0] == ["the sky"]


def test_sheets_show_what_the_seed_says():
    rows = sheet_rows(1000, seed=3)
    assert len(rows) == 64 == len(set(rows.tolist())) and rows.tolist() == sorted(rows)
    assert sheet_rows(1000, seed=3).tolist() == rows.tolist() != sheet_rows(1000, seed=4).tolist()
    assert sheet_rows(5, seed=3).tolist() == [0, 1, 2, 3, 4]
    red = Image.new("RGB", (10, 20), (255, 0, 0))
    sheet = draw_sheet([SheetCell(red, "a title much too long for the cell that it is in")] * 9, columns=4)
    pixels = np.asarray(sheet)
    areas = [(pixels[:, :, 0] == 255) & (pixels[:, :, 1] == 0)]
    assert areas[0].sum() == pytest.approx(9 * CELL * CELL / 2, rel=0.05)
    assert sheet.width < 5 * CELL and sheet.height > 3 * CELL


def test_sheets_write_accented_letters_without_their_accents():
    cell = Image.new("RGB", (CELL, CELL), "red")
    drawn, boxes = (draw_sheet([SheetCell(cell, title, "")]) for title in ("São Tomé", "S\uffffo Tom\uffff"))
    assert drawn.tobytes() == draw_sheet([SheetCell(cell, "Sao Tome", "")]).tobytes()
    assert drawn.tobytes() != boxes.tobytes()


def test_choices_and_controls():
    assert choose(5, None, 0).tolist() == choose(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    assert len(set(choose(50, 7, 0).tolist())) == 7
    keys = ["a"] * 20 + ["b"]
    assert all(keys[other] != key for key, other in zip(keys, others(keys, 0)))
    with pytest.raises(ValueError, match="shuffled control"):
        others(["a", "a"], 0)


def test_bad_options_say_what_to_do(repository, seed_repository, emoji, tmp_path):
    options = ["--data", emoji, "--split", "test", "--output", tmp_path / "out"]
    args = run("caption", "--model", seed_repository, *options)
    with pytest.raises(ValueError, match="no language model"):
        execute(args)
    args = run("draw", "--model", repository, *options, "--temperature", 0, "--top-p", 0.9)
    with pytest.raises(ValueError, match="top_p is 0.9 at temperature 0"):
        execute(args)
    args = run("draw", "--model", repository, *options, "--temperature", 1, "--top-p", 1.5)
    with pytest.raises(ValueError, match="top_p is 1.5"):
        execute(args)
    args = run("draw", "--model", repository, *options, "--limit", 1)
    with pytest.raises(ValueError, match="at least 2"):
        execute(args)
    # The image tokenizer of another repository: its codes mean other things.
    other = SeedModel.from_pretrained(repository / "image_tokenizer")
    with torch.no_grad():
        other.quantizer.codebook.weight.add_(1.0)
    (tmp_path / "moved").mkdir()
    for file in repository.iterdir():
        (tmp_path / "moved" / file.name).symlink_to(file)
    (tmp_path / "moved" / "image_tokenizer").unlink()
    other.save_pretrained(tmp_path / "moved" / "image_tokenizer")
    for file in (repository / "image_tokenizer").iterdir():
        if not (tmp_path / "moved" / "image_tokenizer" / file.name).exists():
            (tmp_path / "moved" / "image_tokenizer" / file.name).symlink_to(file)
    for task in ("caption", "draw"):
        args = run(task, "--model", tmp_path / "moved", *options)
        with pytest.raises(ValueError, match="hash"):
            execute(args)
    # A language model that its repository's processor was not made for.
    config = json.loads((repository / "config.json").read_text()) | {"image_tokenizer_hash": "0" * 64}
    (tmp_path / "moved" / "config.json").unlink()
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trained with the image tokenizer 000000000000"):
        execute(args)


def test_a_metric_that_cannot_be_loaded_is_named_before_the_work(repository, emoji, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"The metric {name} cannot be loaded")

    monkeypatch.setattr("seed.evaluation.scores.load_metric", missing)
    monkeypatch.setattr("seed.evaluation.captioning._caption", lambda *_: pytest.fail("captioned in vain"))
    monkeypatch.setattr("seed.evaluation.question_answering._answer", lambda *_: pytest.fail("answered in vain"))
    monkeypatch.setattr("seed.evaluation.drawing._draw", lambda *_: pytest.fail("drew in vain"))
    write_questions(questions_of(pictures(2, seed=6), [["?"]] * 4), tmp_path / "asked.parquet")
    for task, data in (("caption", emoji / "test.parquet"), ("vqa", tmp_path / "asked.parquet"), ("draw", emoji)):
        options = ["--split", "test"] if task == "draw" else []
        args = run(task, "--model", repository, "--data", data, *options, "--output", tmp_path / "out")
        with pytest.raises(ModuleNotFoundError, match="cannot be loaded"):
            execute(args)


def test_a_checkpoint_that_samples_captions_as_any_other(repository, tmp_path):
    """As Llama 2's settings do: an evaluation asks for the likeliest words."""
    shutil.copytree(repository, tmp_path / "sampling")
    settings = GenerationConfig.from_pretrained(repository)
    settings.update(do_sample=True, temperature=5.0, top_p=0.9)
    settings.save_pretrained(tmp_path / "sampling")
    codes = torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(0))
    for beams in (1, 3):
        expected = EvaluatedLanguageModel(repository, num_beams=beams).caption(codes)
        model = EvaluatedLanguageModel(tmp_path / "sampling", num_beams=beams)
        assert model.model.generation_config.do_sample and model.caption(codes) == expected


def edited_tokenizer(repository, folder, **config):
    """A copy of the repository whose image tokenizer lacks parts and its text tokenizer."""
    shutil.copytree(repository, folder)
    model = SeedModel.from_pretrained(folder / "image_tokenizer", **config)
    shutil.rmtree(folder / "image_tokenizer")
    model.save_pretrained(folder / "image_tokenizer")
    (folder / "image_tokenizer" / "preprocessor_config.json").write_bytes(
        (repository / "image_tokenizer" / "preprocessor_config.json").read_bytes()
    )
    return folder


def test_the_sheet_shows_each_picture_over_its_own_caption(repository, emoji, tmp_path, monkeypatch):
    """Pictures are opened again for it, after one that cannot be opened was left out."""
    monkeypatch.setenv("PATH", "")
    given = pq.read_table(emoji / "test.parquet").to_pylist()
    given[2]["image"] = {"bytes": b"no picture", "path": None}
    pq.write_table(pa.Table.from_pylist(given), emoji / "test.parquet")
    kept = []
    monkeypatch.setattr("seed.evaluation.captioning.save_sheet", lambda cells, path: kept.extend(cells))
    _, rows = evaluate("caption", tmp_path / "out", "--model", repository, "--data", emoji, "--split", "test")
    assert [row["row"] for row in rows] == [0, 1, 3, 4, 5]
    for cell, row in zip(kept, rows, strict=True):
        assert (cell.title, cell.note) == (row["language model"] or "(nothing)", row["names"][0])
        shown, expected = (image.resize((16, 16)) for image in (cell.image, pictures(6, seed=6)[row["row"]]))
        assert np.abs(np.asarray(shown, float) - np.asarray(expected, float)).mean() < 8


def test_captions_and_answers_need_no_text_branch(repository, emoji, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    bare = edited_tokenizer(repository, tmp_path / "bare", use_text_branch=False)
    options = ["--data", emoji, "--split", "test"]
    _, expected = evaluate("caption", tmp_path / "whole", "--model", repository, *options)
    _, rows = evaluate("caption", tmp_path / "out", "--model", bare, *options)
    assert [row["language model"] for row in rows] == [row["language model"] for row in expected]
    write_questions(questions_of(pictures(2, seed=6), [["?"]] * 4), tmp_path / "asked.parquet")
    asked = ["--data", tmp_path / "asked.parquet"]
    _, expected = evaluate("vqa", tmp_path / "whole", "--model", repository, *asked)
    _, rows = evaluate("vqa", tmp_path / "out", "--model", bare, *asked)
    assert [row["language model"] for row in rows] == [row["language model"] for row in expected]
    # The retrieval captioner does need it, and says so before a picture is captioned.
    monkeypatch.setattr("seed.evaluation.captioning._caption", lambda *_: pytest.fail("captioned in vain"))
    with_training = ["--train-data", emoji, "--train-split", "train", "--output", tmp_path / "refused"]
    args = run("caption", "--model", bare, *options, *with_training)
    with pytest.raises(ValueError, match="no text branch"):
        execute(args)
    args = run("caption", "--model", edited_tokenizer(repository, tmp_path / "mute"), *options, *with_training)
    with pytest.raises(FileNotFoundError, match="no text tokenizer"):
        execute(args)
    alone = edited_tokenizer(repository, tmp_path / "alone", use_reconstruction_decoder=False)
    args = run("caption", "--model", alone, *options, *with_training)
    with pytest.raises(ValueError, match="no reconstruction decoder.*leave --train-data out"):
        execute(args)


def test_captions_are_kept_where_a_scorer_fails(repository, emoji, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("the scorer has died")

    monkeypatch.setattr("seed.evaluation.captioning.score_captions", broken)
    output = tmp_path / "out"
    output.mkdir()
    (output / "caption.json").write_text("{}")  # of an earlier run
    args = run("caption", "--model", repository, "--data", emoji, "--split", "test", "--output", output)
    with pytest.raises(OSError, match="has died"):
        execute(args)
    rows = pq.read_table(output / "caption_predictions.parquet").to_pylist()
    assert [row["names"][0] for row in rows] == NAMES and all("language model" in row for row in rows)
    assert not (output / "caption.json").exists()


def test_longer_captions_on_demand(repository, emoji, tmp_path, monkeypatch):
    codes = torch.randint(64, (3, 32), generator=torch.Generator().manual_seed(0))
    short, usual, long = (
        EvaluatedLanguageModel(repository, num_beams=1, max_new_tokens=count).caption(codes) for count in (2, None, 48)
    )
    counts = [max(map(len, texts)) for texts in (short, usual, long)]
    assert counts[0] < counts[1] < counts[2], "a random model hardly ever stops"
    monkeypatch.setenv("PATH", "")
    options = ["--model", repository, "--data", emoji, "--split", "test", "--num-beams", 1]
    texts = []
    for count in (2, 48):
        report, rows = evaluate("caption", tmp_path / str(count), *options, "--max-new-tokens", count)
        assert report["settings"]["max_new_tokens"] == count
        texts.append(max(len(row["language model"]) for row in rows))
    assert texts[0] < texts[1]


def test_names_are_of_the_rows_that_have_some():
    columns = {"name": ["cat", None, " ", None], "captions": [["a cat"], ["dog", "hound"], ["owl"], None]}
    pictures = SimpleNamespace(dataset=Dataset.from_dict(columns))
    assert training_names(pictures) == ["cat", "dog", "owl"]
    numbers = {"name": [7, None], "captions": [["seven"], ["eight"]]}
    assert training_names(SimpleNamespace(dataset=Dataset.from_dict(numbers))) == ["7", "eight"]


def test_training_pictures_are_read_as_the_data_are(repository, tmp_path, monkeypatch):
    """A Karpathy file beside its pictures' folder: what tells where they are is for both of its splits."""
    (tmp_path / "pictures").mkdir()
    entries = []
    for number, (name, image) in enumerate(zip(NAMES, pictures(6, seed=6))):
        image.save(tmp_path / "pictures" / f"{number}.png")
        split = "train" if number < 3 else "test"
        sentences = [{"raw": name}]
        entries.append({"filename": f"{number}.png", "filepath": "", "split": split, "sentences": sentences})
    (tmp_path / "data.json").write_text(json.dumps({"images": entries}))
    monkeypatch.setenv("PATH", "")
    options = ["--format", "karpathy", "--image-root", tmp_path / "pictures", "--split", "test"]
    options += ["--train-data", tmp_path / "data.json", "--train-split", "train"]
    report, rows = evaluate(
        "caption", tmp_path / "out", "--model", repository, "--data", tmp_path / "data.json", *options
    )
    assert len(rows) == 3 and report["names_to_choose_from"] == 3
