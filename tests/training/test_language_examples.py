import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_language import tiny_processor

from seed.data.codes import CodesMetadata, codes_schema
from seed.training import language_examples
from seed.training.language_examples import (
    LanguageDataset,
    LanguageFile,
    LanguageRecipe,
    load_language_recipe,
)

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
METADATA = CodesMetadata(
    image_tokenizer="a" * 64, preprocessing="b" * 64, dtype="float32", codebook_size=64, num_codes=32
)
CODES = np.random.default_rng(0).integers(64, size=(12, 32)).tolist()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def write(path: Path, rows: list[dict], schema: pa.Schema | None = None) -> Path:
    stamp = codes_schema(METADATA, with_captions=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table.replace_schema_metadata(stamp.metadata), path)
    return path


def caption_rows() -> list[dict]:
    """Six pictures of two views; the captions say which."""
    return [
        {
            "id": f"p{picture}",
            "codes": CODES[2 * picture + view],
            "captions": [f"red {picture}", f"a dog {picture}"],
            "view": view,
        }
        for picture in range(6)
        for view in range(2)
    ]


def open_file(path: Path) -> LanguageFile:
    return LanguageFile(path, "a" * 64, codebook_size=64, num_codes=32)


def dataset(processor, files, tasks, **settings) -> LanguageDataset:
    options = {"max_length": 200, "seed": 3} | {
        key: settings.pop(key) for key in ("max_length", "seed", "examples") if key in settings
    }
    recipe = LanguageRecipe(epochs=1, training={}, tasks=tasks, **settings)
    return LanguageDataset(files, processor, recipe, **options)


def read(processor, example) -> tuple[str, list[int], str]:
    """Task, codes and words of an example, read off its ids."""
    kinds = processor.split_images(example["input_ids"])
    (codes,) = (content for kind, content in kinds if kind == "image")
    words = "".join(processor.tokenizer.decode(content) for kind, content in kinds if kind == "words")
    return ("caption" if kinds[0][0] == "image" else "drawing"), codes, words.replace("</s>", "").strip()


def test_an_epoch_takes_every_picture_once_per_task_and_any_view_and_caption(tmp_path, processor):
    file = open_file(write(tmp_path / "codes.parquet", caption_rows()))
    run = dataset(
        processor, [file], {"caption": 1, "drawing": 0.5}, caption_dropout=0.0, first_caption_probability=0.25,
        examples=9 * 200,
    )  # fmt: skip
    assert run.epoch_length == 9
    seen, captions, order = Counter(), Counter(), []
    for position in range(9 * 200):
        task, codes, words = read(processor, run[position])
        row = CODES.index(codes)
        assert words.endswith(str(row // 2)) and words.startswith("A photo of" if task == "caption" else "Generate")
        seen[task, row] += 1
        captions["red" in words] += 1
        order.append((task, row // 2))
    for epoch in range(200):
        assert sorted(p for t, p in order[9 * epoch : 9 * epoch + 9] if t == "caption") == list(range(6))
    for pair in range(100):
        assert sorted(p for t, p in order[18 * pair : 18 * pair + 18] if t == "drawing") == list(range(6))
    assert len({tuple(order[9 * epoch : 9 * epoch + 9]) for epoch in range(200)}) > 190, "orders differ"
    assert all(70 <= seen["caption", row] <= 130 for row in range(12)), "100 +- 4 standard deviations"
    assert abs(captions[True] / 1800 - (0.25 + 0.75 / 2)) < 0.05


def test_an_example_depends_on_seed_and_position_only(tmp_path, processor):
    file = open_file(write(tmp_path / "codes.parquet", caption_rows()))
    tasks = {"caption": 1, "drawing": 1}
    first = dataset(processor, [file], tasks)
    later = dataset(processor, [file], tasks)
    everything = [first[position] for position in range(60)]
    assert [later[position] for position in reversed(range(60))] == everything[::-1]
    assert [dataset(processor, [file], tasks, seed=4)[position] for position in range(60)] != everything


def test_orders_are_not_drawn_anew_at_every_look_up(tmp_path, processor, monkeypatch):
    """Of millions of rows one takes seconds."""
    file = open_file(write(tmp_path / "codes.parquet", caption_rows()))
    texts = write(tmp_path / "text.parquet", [{"text": f"a dog {i}"} for i in range(7)])
    drawn, draw = [], language_examples._permutation

    def counted(length, *key):
        drawn.append(key)
        return draw(length, *key)

    monkeypatch.setattr(language_examples, "_permutation", counted)
    weights = {"caption": 4, "drawing": 3.5, "text": 1}
    run = dataset(processor, [file, open_file(texts)], weights, examples=50 * 52)
    assert run.epoch_length == 52
    for position in range(len(run)):
        run[position]
    # Of 50 epochs, and of 50 times 4, 3.5 and 1 passes over the rows. One that two epochs share may be drawn once more,
    # where there are so few rows that none of it is looked up for long.
    assert len(set(drawn)) == 50 + 200 + 175 + 50 and len(drawn) <= len(set(drawn)) + 25
    assert len(run._orders) <= 1 + 6 + 6 + 3


def test_captions_are_dropped_from_drawings_only(tmp_path, processor):
    file = open_file(write(tmp_path / "codes.parquet", caption_rows()))
    run = dataset(processor, [file], {"caption": 1, "drawing": 1}, caption_dropout=0.3, augmented_drawings=False)
    empty = Counter()
    for position in range(1200):
        task, codes, words = read(processor, run[position])
        empty[task, words == "Generate an image"] += 1
        assert task == "caption" or CODES.index(codes) % 2 == 0, "drawings are of the picture itself"
    assert empty["caption", True] == 0 and 130 < empty["drawing", True] < 230


def test_pictures_that_share_an_id_are_no_views(tmp_path, processor):
    """As `seed tokenize a.tar b.tar` writes them where both shards count from 0."""
    rows = [{"id": f"{i % 2:05d}", "codes": CODES[i], "captions": [f"red {i}"]} for i in range(4)]
    file = open_file(write(tmp_path / "codes.parquet", rows))
    assert file.count("caption") == 4
    run = dataset(processor, [file], {"drawing": 1}, caption_dropout=0.0, augmented_drawings=False)
    assert sorted(CODES.index(read(processor, run[position])[1]) for position in range(4)) == [0, 1, 2, 3]


def test_several_questions_about_one_picture_all_come(tmp_path):
    rows = [{"id": "p", "codes": CODES[0], "question": f"what is {i}", "answer": "a dog"} for i in range(3)]
    assert open_file(write(tmp_path / "questions.parquet", rows)).count("question") == 3


def test_questions_documents_and_instructions(tmp_path, processor):
    questions = open_file(
        write(
            tmp_path / "questions.parquet",
            [{"codes": CODES[i], "question": f"what is {i}", "answers": ["a dog", "a cat"]} for i in range(3)],
        )
    )
    documents = open_file(
        write(
            tmp_path / "documents.parquet",
            [{"segments": [{"text": "A dog.", "codes": None}, {"text": None, "codes": CODES[0]}]}] * 2,
        )
    )
    image, words = {"type": "image", "text": None, "codes": CODES[1]}, {"type": "text", "text": "a", "codes": None}
    turns = [{"role": "user", "content": [image, words]}, {"role": "assistant", "content": [words]}]
    instructions = open_file(write(tmp_path / "instructions.parquet", [{"messages": turns}]))
    assert [file.tasks for file in (questions, documents, instructions)] == [
        ["question"],
        ["document"],
        ["instruction"],
    ]
    files = [questions, documents, instructions]
    run = dataset(processor, files, {"question": 1, "document": 1, "instruction": 2}, examples=80)
    expected = {
        str(processor.question_example(CODES[i], f"what is {i}", answer))
        for i in range(3)
        for answer in ("a dog", "a cat")
    }
    expected.add(str(processor.document_example(["A dog.", CODES[0]])))
    clean = [
        {"role": "user", "content": [{"type": "image", "codes": CODES[1]}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "a"},
    ]
    expected.add(str(processor.instruction_example(clean)))
    found = {str({key: example[key] for key in ("input_ids", "labels")}) for example in map(run.__getitem__, range(80))}
    assert found == expected


def test_text_alone_needs_no_stamp_and_is_cut_to_the_row(tmp_path, processor):
    long, short = "a dog and a cat " * 40, "a dog"
    pq.write_table(pa.table({"text": [long, short], "source": ["x", "y"]}), tmp_path / "text.parquet")
    run = dataset(processor, [open_file(tmp_path / "text.parquet")], {"text": 1}, max_length=50)
    found = {len(run[i]["input_ids"]): run[i] for i in range(2)}
    words = [processor.tokenizer.encode(text, add_special_tokens=False) for text in (long, short)]
    bos, eos = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    assert found[50]["input_ids"] == [bos, *words[0][:49]] and found[50]["labels"] == [-100, *words[0][:49]]
    whole = found[len(words[1]) + 2]
    assert whole["input_ids"] == [bos, *words[1], eos] and whole["labels"] == [-100, *words[1], eos]


def test_a_row_that_is_too_long_gives_its_place_to_the_next_and_is_named(tmp_path, processor, caplog):
    rows = caption_rows()[::2]
    rows[2]["captions"] = ["red square " * 60]
    file = open_file(write(tmp_path / "codes.parquet", rows))
    run = dataset(processor, [file], {"caption": 1}, max_length=80)
    with caplog.at_level(logging.WARNING):
        assert {run[position]["name"] for position in range(30)} == {f"codes.parquet, row {i}" for i in (0, 1, 3, 4, 5)}
    (record,) = caplog.records
    assert record.getMessage().startswith("A row is left out. codes.parquet, row 2: as a caption it has")
    with pytest.raises(ValueError, match="No caption example of these files can be .* tokens, and 30 fit"):
        dataset(processor, [file], {"caption": 1}, max_length=30)[0]


def test_a_row_that_makes_no_example_gives_its_place_to_the_next_and_is_named(tmp_path, processor, caplog):
    """As the alternative text of a picture on the web may: one in a million must not end a run."""
    rows = caption_rows()[::2]
    rows[2]["captions"] = ["an <img> tag"]
    run = dataset(processor, [open_file(write(tmp_path / "codes.parquet", rows))], {"caption": 1})
    with caplog.at_level(logging.WARNING):
        assert {run[position]["name"] for position in range(30)} == {f"codes.parquet, row {i}" for i in (0, 1, 3, 4, 5)}
    (record,) = caplog.records
    assert "left out. codes.parquet, row 2: " in record.getMessage() and "spells visual tokens" in record.getMessage()


def test_bad_files_say_what_is_wrong(tmp_path, processor):
    with pytest.raises(FileNotFoundError, match="nothing.parquet"):
        open_file(tmp_path / "nothing.parquet")
    path = write(tmp_path / "codes.parquet", caption_rows())
    with pytest.raises(
        ValueError, match=r"codes.parquet: an image tokenizer with weights aaaaaaaaaaaa.*the model has cc"
    ):
        LanguageFile(path, "c" * 64, 64, 32)
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), tmp_path / "unstamped.parquet")
    with pytest.raises(ValueError, match="does not say which image tokenizer.*seed tokenize"):
        open_file(tmp_path / "unstamped.parquet")
    with pytest.raises(ValueError, match="expected captions, question, segments, messages or text"):
        open_file(write(tmp_path / "other.parquet", [{"codes": CODES[0]}]))
    with pytest.raises(ValueError, match="asks for question examples.*'question'"):
        dataset(processor, [open_file(path)], {"question": 1})
    bad = open_file(write(tmp_path / "bad.parquet", [{"codes": CODES[0], "captions": ["a <img_00003>"]}]))
    with pytest.raises(ValueError, match="bad.parquet, row 0: .*visual tokens"):
        dataset(processor, [bad], {"caption": 1})[0]


TASKS_OF_STAGES = {
    "language_stage1": {"caption"},
    "language_stage2": {"caption", "drawing"},
    "language_vqa": {"question"},
    "finetune": {"caption", "drawing"},
}


SHIPPED = sorted([*RECIPES.glob("language_*/*.yaml"), *RECIPES.glob("finetune/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_recipes_are_valid(path):
    expected = TASKS_OF_STAGES[path.parent.name]
    if (path.parent.name, path.stem) == ("language_stage2", "tiny"):  # what seed-tiny learns beside
        expected = expected | {"question", "text"}
    assert set(load_language_recipe(path).tasks) == expected


def test_an_unknown_task_or_key_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    for tasks in ("{captions: 1}", "{caption: 0, drawing: 0.0}", "{}"):
        path.write_text(f"epochs: 1\ntraining: {{}}\ntasks: {tasks}\n")
        with pytest.raises(ValueError, match="tasks are .*expected weights above 0 of some of caption, drawing"):
            load_language_recipe(path)
    path.write_text("epochs: 1\ntraining: {}\ntasks: {caption: 1}\nlora: {r: 4}\n")
    with pytest.raises(ValueError, match="Unknown key 'r'.*'rank'"):
        load_language_recipe(path)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("caption_dropout: 5", "caption_dropout is 5; expected a share of 0 to 1"),
        ("first_caption_probability: -0.1", "first_caption_probability is -0.1"),
        ("capacity: 0", "capacity is 0; expected 1 or more"),
        ("lora: {rank: 0}", "lora: rank is 0; expected 1 or more"),
        ("tasks: {caption: -1}", "tasks: caption is -1; expected how often"),
        ("tasks: {caption: .nan}", "tasks: caption is nan"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, setting, message):
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 1\ntraining: {}\n" + ("" if "tasks" in setting else "tasks: {caption: 1}\n") + setting)
    with pytest.raises(ValueError, match=message):
        load_language_recipe(path)


def test_a_dtype_that_training_cannot_compute_in_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 1\ntasks: {caption: 1}\ntraining: {}\ndtype: bfloat16\n")
    with pytest.raises(ValueError, match="add bf16: true under training"):
        load_language_recipe(path)
    path.write_text("epochs: 1\ntasks: {caption: 1}\ntraining: {bf16: true}\ndtype: half\n")
    with pytest.raises(ValueError, match="dtype is 'half'; expected one of float32, bfloat16, float16"):
        load_language_recipe(path)
    path.write_text("epochs: 1\ntasks: {caption: 1}\ntraining: {bf16: true}\ndtype: bfloat16\n")
    assert load_language_recipe(path).dtype == "bfloat16"


def write_conversations(path: Path, answer: str = "a") -> LanguageFile:
    image, words = {"type": "image", "text": None, "codes": CODES[1]}, {"type": "text", "text": "is it", "codes": None}
    turns = [
        {"role": "user", "content": [image, words]},
        {"role": "assistant", "content": [words | {"text": answer}]},
    ]
    return open_file(write(path, [{"messages": turns}]))


def test_conversations_are_rendered_by_the_recipes_chat_template(tmp_path, processor):
    file = write_conversations(tmp_path / "instructions.parquet")

    def text(**settings) -> str:
        example = dataset(processor, [file], {"instruction": 1}, **settings)[0]
        return processor.tokenizer.decode([token for token in example["input_ids"] if token < processor.boi_token_id])

    assert text() == "</s>Question: is it Short answer a</s>"
    assert text(chat_template="instruction") == "</s>USER: is it ASSISTANT: a</s>"
    with pytest.raises(ValueError, match="chat_template is 'instructions'; the processor has default, instruction"):
        dataset(processor, [file], {"instruction": 1}, chat_template="instructions")


@pytest.mark.parametrize("forged", ["<img_00003>", "<img>" + "<img_00003>" * 32 + "</img>"])
def test_words_of_a_conversation_that_spell_an_image_are_refused(tmp_path, processor, forged):
    file = write_conversations(tmp_path / "instructions.parquet", answer=f"a {forged} b")
    with pytest.raises(ValueError, match="No instruction.*instructions.parquet, row 0: .*spells visual tokens"):
        dataset(processor, [file], {"instruction": 1})[0]


def test_rows_without_words_are_left_out_and_counted(tmp_path, processor, caplog):
    captions = [["a"], [], None, [""], [" ", "b", None], ["c"]]
    rows = [{"id": str(i), "codes": CODES[i], "captions": captions[i]} for i in range(6)]
    with caplog.at_level(logging.WARNING):
        file = open_file(write(tmp_path / "codes.parquet", rows))
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "3 of 6 rows have no words for caption and drawing examples and are left out of those."
    ]
    run = dataset(processor, [file], {"caption": 1}, examples=60, first_caption_probability=0.5)
    assert {(CODES.index(codes), words) for _, codes, words in (read(processor, run[i]) for i in range(60))} == {
        (0, "A photo of a"), (4, "A photo of b"), (5, "A photo of c")
    }  # fmt: skip

    answers = [["a"], [], [" "], ["", "b"], ["c"], None]
    questions = ["?", "?", "?", "?", "  ", "?"]
    rows = [{"codes": CODES[i], "question": questions[i], "answers": answers[i]} for i in range(6)]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        file = open_file(write(tmp_path / "questions.parquet", rows))
    assert "4 of 6 rows have no words for question examples" in caplog.text
    run = dataset(processor, [file], {"question": 1}, examples=20)
    expected = [processor.question_example(CODES[0], "?", "a"), processor.question_example(CODES[3], "?", "b")]
    assert {str(run[i]["input_ids"]) for i in range(20)} == {str(example["input_ids"]) for example in expected}

    single = [{"codes": CODES[i], "question": "?", "answer": ["a", None, ""][i]} for i in range(3)]
    assert open_file(write(tmp_path / "single.parquet", single)).count("question") == 1
    documents = open_file(write(tmp_path / "documents.parquet", [{"segments": [{"text": "a"}]}, {"segments": []}]))
    assert documents.count("document") == 1
    with pytest.raises(ValueError, match="empty.parquet: no row has the words that caption and drawing examples need"):
        open_file(write(tmp_path / "empty.parquet", [{"codes": CODES[0], "captions": [""]}]))


def test_a_row_serves_the_tasks_that_it_has_words_for(tmp_path, processor, caplog):
    rows = [{"codes": CODES[i], "captions": [f"red {i}"], "text": "a dog" if i == 1 else None} for i in range(4)]
    file = open_file(write(tmp_path / "codes.parquet", rows))
    assert {task: file.count(task) for task in file.tasks} == {"caption": 4, "drawing": 4, "text": 1}
    run = dataset(processor, [file], {"caption": 1, "text": 4}, examples=8)
    found = [run[position] for position in range(8)]
    said = Counter(read(processor, example)[2] for example in found if len(example["input_ids"]) > 32)
    assert said == {f"A photo of red {i}": 1 for i in range(4)}


def test_a_column_that_needs_codes_is_left_aside_where_there_are_none(tmp_path, processor, caplog):
    """Conversations often have a column `question`, documents one of `captions`; their codes stand within them."""
    said = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "a dog"}]
    with caplog.at_level(logging.WARNING):
        talk = open_file(write(tmp_path / "talk.parquet", [{"messages": said, "question": "red", "answer": "a dog"}]))
        prose = open_file(write(tmp_path / "prose.parquet", [{"text": "a dog", "captions": ["a dog"]}]))
    assert talk.tasks == ["instruction"] and prose.tasks == ["text"]
    assert "no column 'codes'. This file serves no question examples" in caplog.text
    assert "serves no caption and drawing examples" in caplog.text
    assert len(dataset(processor, [talk, prose], {"instruction": 1, "text": 1})[0]["input_ids"]) > 0
    with pytest.raises(ValueError, match="a column 'question' beside 'codes'"):
        dataset(processor, [talk], {"instruction": 1, "question": 1})
    with pytest.raises(ValueError, match="no column 'codes'"):
        open_file(write(tmp_path / "alone.parquet", [{"question": "red", "answer": "a dog"}]))


def test_a_task_of_small_weight_does_not_vanish(tmp_path, processor):
    file = open_file(write(tmp_path / "codes.parquet", caption_rows()))
    run = dataset(processor, [file], {"caption": 1, "drawing": 0.01})
    assert Counter(read(processor, run[position])[0] for position in range(len(run))) == {"caption": 6, "drawing": 1}


@pytest.mark.parametrize(
    "column, message",
    [
        ({"question": "what"}, "a column 'question' but neither 'answer' nor 'answers'"),
        ({"text": 3}, "column 'text' holds int64; expected texts"),
        ({"messages": "hello"}, "column 'messages' holds string; expected lists"),
        ({"segments": []}, "no row has the words that document examples need"),
    ],
)
def test_a_column_of_another_kind_spoils_its_own_task_only(tmp_path, processor, caplog, column, message):
    with caplog.at_level(logging.WARNING):
        file = open_file(write(tmp_path / "codes.parquet", [{"codes": CODES[0], "captions": ["a"]} | column]))
    assert file.tasks == ["caption", "drawing"] and message in caplog.text and "serves no" in caplog.text
    with pytest.raises(ValueError, match=message):
        open_file(write(tmp_path / "alone.parquet", [{"codes": CODES[0]} | column]))


@pytest.mark.parametrize(
    "text, message",
    [
        ("epochs: 1\ntraining:\ntasks: {caption: 1}", "'training' in the recipe .* is None; expected keys with values"),
        ("epochs: 1\ntraining: {}\ntasks: [caption]", "'tasks' .* is \\['caption'\\]; expected keys with values"),
        ("epochs: ten\ntraining: {}\ntasks: {caption: 1}", "'epochs' .* is 'ten'; expected a number"),
        ("epochs: 1e1\ntraining: {}\ntasks: {caption: 1}", "write 1.0e-3"),
        ("epochs: 0\ntraining: {}\ntasks: {caption: 1}", "epochs is 0; expected more than 0"),
        ("epochs: 1\ntraining: {}\ntasks: {caption: often}", "'caption' of 'tasks' .* is 'often'; expected a number"),
        ("epochs: 1\ntraining: {}\ntasks: {caption: 1}\nlora:", "lora is None; expected keys with values"),
        ("epochs: 1\ntraining: {}\ntasks: {caption: 1}\ncapacity: 1.5", "'capacity' .* expected a whole number"),
        ("epochs: 1\ntraining: {}\ntasks: {caption: 1}\naugmented_drawings: 1", "expected true or false"),
        ("epochs: 1\ntraining: {max_steps: 5}\ntasks: {caption: 1}", "'max_steps' does not belong .* --max-steps"),
        ("epochs: 1\ntraining: {num_train_epochs: 3}\ntasks: {caption: 1}", "'num_train_epochs' does not belong"),
        ("epochs: 1\ntraining: {eval_strategy: steps}\ntasks: {caption: 1}", "no script evaluates while it trains"),
    ],
)
def test_a_recipe_of_other_types_is_refused(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        load_language_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "'question' but neither 'answer' nor 'answers'"),
        ({"captions": "a dog"}, "'captions' holds string; expected lists of texts"),
        ({"captions": [1]}, "'captions' holds list.*int64.*; expected lists of texts"),
        ({"question": 3, "answer": "a"}, "'question' holds int64; expected texts"),
        ({"question": "?", "answer": ["a"]}, "'answer' holds list.*; expected texts"),
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"bad.parquet: .*{message}"):
        open_file(write(tmp_path / "bad.parquet", [{"codes": CODES[0]} | row]))
