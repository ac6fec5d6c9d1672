"""The `seed` command, run as a user runs it, on a tiny model with random weights."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_repository import CAPTIONS, SIZE, pictures
from transformers import AutoModelForCausalLM, AutoTokenizer

from seed import SeedModel, SeedPipeline, SeedProcessor
from seed.commands.demo_sheet import QUESTION, contact_sheet, prefix_lengths, run_demo
from seed.commands.main import main
from seed.data import shipped_pictures


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "mine.png"
    pictures(1, seed=5)[0].save(path)
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom seed.commands.main import main\n"
        "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in shown for verb in ("demo", "tokenize", "detokenize", "reconstruct", "evaluate", "convert"))


@pytest.mark.parametrize(
    "verb", ["demo", "tokenize", "detokenize", "reconstruct", "evaluate", "convert", "convert seed1"]
)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*verb.split(), "--help")
    assert stop.value.code == 0 and f"usage: seed {verb}" in capsys.readouterr().out


def test_tokenize_then_detokenize(seed_repository, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, picture in enumerate(pictures(3)):
        picture.save(folder / f"p{number}.png")
    (folder / "broken.png").write_bytes(b"?")
    model = ("--model", seed_repository)
    assert run("tokenize", folder, "--output", tmp_path / "codes.parquet", *model) == 0
    shown = capsys.readouterr()
    assert "codes of 3 of 4 pictures" in shown.out and "broken.png" in shown.err
    assert json.loads((tmp_path / "codes.skipped.jsonl").read_text())["id"] == str(folder / "broken.png")

    assert run("detokenize", tmp_path / "codes.parquet", "--output", tmp_path / "out", *model) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0-p0.png", "1-p1.png", "2-p2.png"]
    codes = torch.tensor(pq.read_table(tmp_path / "codes.parquet")["codes"].to_pylist())
    pipeline = SeedPipeline.from_pretrained(seed_repository)
    drawn = pipeline(codes=codes[1:2], generator=torch.Generator().manual_seed(1)).images[0]
    found = Image.open(tmp_path / "out" / "1-p1.png")
    assert np.abs(np.asarray(found, int) - np.asarray(drawn, int)).max() <= 1


def test_an_image_tokenizer_alone_draws_with_another_decoder(seed_repository, image, tmp_path, capsys):
    alone, decoder = seed_repository / "image_tokenizer", seed_repository / "decoder"
    command = ["reconstruct", image, "--output", tmp_path / "drawn.png", "--model", alone, "--seed", 4]
    assert run(*command, "--decoder", decoder) == 0
    pipeline = SeedPipeline.from_pretrained(alone, decoder=decoder)
    expected = pipeline(Image.open(image), generator=torch.Generator().manual_seed(4)).images[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "drawn.png")), np.asarray(expected))
    assert run(*command) == 2 and "decoder" in capsys.readouterr().err
    assert run(*command, "--decoder", tmp_path / "none") == 2
    assert "none" in capsys.readouterr().err


def test_reconstruct(seed_repository, image, tmp_path, capsys):
    output = tmp_path / "drawn.png"
    assert run("reconstruct", image, "--output", output, "--model", seed_repository, "--seed", 4) == 0
    codes = [int(code) for code in re.search(r"codes ([\d ]+)", capsys.readouterr().out)[1].split()]
    pipeline = SeedPipeline.from_pretrained(seed_repository)
    expected = pipeline(Image.open(image), generator=torch.Generator().manual_seed(4))
    assert expected.codes.tolist() == [codes]
    assert np.array_equal(np.asarray(Image.open(output)), np.asarray(expected.images[0]))
    run("reconstruct", image, "--output", tmp_path / "one.png", "--model", seed_repository, "--prefix-length", 1)
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), np.asarray(expected.images[0]))


def test_demo(seed_repository, image, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert run("demo", image, "--model", seed_repository, "--output", sheet) == 0
    shown = capsys.readouterr().out
    names = ["mine", "owl", "red-apple", "elephant", "locomotive", "nerd-face", "orange-book"]
    assert re.findall(r"^(\S+)$", shown, re.MULTILINE) == names
    codes = torch.tensor([list(map(int, line.split()[1:])) for line in shown.splitlines() if "  codes  " in line])
    pipeline = SeedPipeline.from_pretrained(seed_repository)
    assert torch.equal(codes[:1], pipeline.tokenize_images(Image.open(image)))
    assert Image.open(sheet).size == (8 + 7 * 136, 26 + 7 * 154)

    # The nearest captions, from the codes alone, computed by hand.
    model = SeedModel.from_pretrained(seed_repository / "image_tokenizer").eval()
    tokenizer = AutoTokenizer.from_pretrained(seed_repository / "image_tokenizer")
    with torch.no_grad():
        text = torch.cat(
            [model.get_text_features(torch.tensor([tokenizer(caption).input_ids])) for caption in CAPTIONS]
        )
        features = model.vision_projection(model.reconstruct_causal_embeddings(codes)[:, -1])
    best = [CAPTIONS[number] for number in torch.nn.functional.normalize(features, dim=-1).mm(text.T).argmax(1)]
    assert re.findall(r"  nearest  ([a-z ]+) \(", shown) == best


def test_the_sheet_shows_every_prefix_from_one_noise(seed_repository, image):
    rows, _ = run_demo(seed_repository, [image, shipped_pictures()[0]], seed=3, batch_size=5, log=lambda line: None)
    pipeline = SeedPipeline.from_pretrained(seed_repository)
    assert prefix_lengths(32) == [1, 2, 4, 8, 16, 32] and prefix_lengths(5) == [1, 2, 4, 5]
    sheet = np.asarray(contact_sheet(rows))
    for number, row in enumerate(rows):
        for column, length in enumerate([1, 2, 4, 8, 16, 32]):
            generator = torch.Generator().manual_seed(3 + number)
            drawn = pipeline(codes=row.codes[None], prefix_length=length, generator=generator).images[0]
            assert np.abs(np.asarray(drawn, int) - np.asarray(row.drawings[column], int)).max() <= 1
            left, top = 8 + (column + 1) * 136, 26 + number * 154
            shown = sheet[top : top + 128, left : left + 128]
            enlarged = np.asarray(row.drawings[column].resize((128, 128), Image.Resampling.BICUBIC))
            assert np.array_equal(shown, enlarged)
    assert rows[0].drawings[0].size == (SIZE, SIZE)


def test_shipped_pictures_have_a_licence_each():
    folder = shipped_pictures()[0].parent
    header, *lines = (folder / "ATTRIBUTION.tsv").read_text().splitlines()
    rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    assert {row["file"] for row in rows} == {path.name for path in folder.glob("*.png")}
    assert {row["license"] for row in rows} <= {"CC-BY-4.0", "Apache-2.0", "MIT"}
    assert all(row["author"] and row["source"] for row in rows)


def test_a_model_without_captions_still_has_a_demo(seed_repository, image, tmp_path):
    shutil.copytree(seed_repository, tmp_path / "model")
    (tmp_path / "model" / "image_tokenizer" / "captions.txt").unlink()
    rows, drawn_prompts = run_demo(tmp_path / "model", [image], log=lambda line: None)
    assert rows[0].captions == [] and len(rows[0].drawings) == 6
    assert rows[0].caption is None and drawn_prompts == []


def test_demo_with_a_language_model(language_repository, image, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert run("demo", image, "--model", language_repository, "--output", sheet) == 0
    shown = capsys.readouterr().out
    model, processor = by_hand(language_repository)
    inputs = processor.caption_prompts(images=[Image.open(image)])
    caption = write(model, processor, inputs, 32)
    assert re.search(r"^mine\n  codes .*\n  nearest .*\n  caption (.*)$", shown, re.MULTILINE)[1].strip() == caption
    assert shown.count(f"  {QUESTION}") == 7
    assert Image.open(sheet).size == (8 + 7 * 136, 26 + 7 * 154 + 18 + 154)


def by_hand(repository):
    return AutoModelForCausalLM.from_pretrained(repository).eval(), SeedProcessor.from_pretrained(repository)


@torch.no_grad()
def write(model, processor, inputs, max_new_tokens: int) -> str:
    """The likeliest words after a prompt that five beams find, by whole forward passes."""
    ids, beams = inputs["input_ids"], 5
    start, running, finished = ids.shape[1], [(0.0, ids[0].tolist())], []
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([row for _, row in running])).logits[:, -1, : processor.boi_token_id]
        scores = logits.log_softmax(dim=-1) + torch.tensor([score for score, _ in running])[:, None]
        best = scores.flatten().topk(2 * beams)
        found = [(score, *divmod(place, scores.shape[1])) for score, place in zip(*map(torch.Tensor.tolist, best))]
        ends = processor.tokenizer.eos_token_id
        finished += [(score, running[row][1]) for score, row, token in found[:beams] if token == ends]
        running = [(score, [*running[row][1], token]) for score, row, token in found if token != ends][:beams]
    words = max(finished + running)[1][start:]
    return processor.tokenizer.decode(words, skip_special_tokens=True).strip()


def test_caption_and_ask(language_repository, image, tmp_path, monkeypatch, capsys):
    model, processor = by_hand(language_repository)
    picture = Image.open(image)
    assert run("caption", image, image, "--model", language_repository) == 0
    caption = write(model, processor, processor.caption_prompts(images=[picture]), 32)
    assert " ".join(capsys.readouterr().out.split()) == " ".join(f"{image}: {caption} {image}: {caption}".split())
    # Many pictures are captioned in order, a few at a time.
    monkeypatch.setattr("seed.generation_seed.IMAGES_PER_BATCH", 2)
    paths, batches = [tmp_path / f"{number}.png" for number in range(3)], []
    for path, made in zip(paths, pictures(3, seed=6)):
        made.save(path)
    prompts = SeedProcessor.caption_prompts
    monkeypatch.setattr(
        SeedProcessor,
        "caption_prompts",
        lambda self, images=None, codes=None: batches.append(len(codes)) or prompts(self, images, codes),
    )
    tokenised, tokenize_images = [], SeedProcessor.tokenize_images
    monkeypatch.setattr(
        SeedProcessor,
        "tokenize_images",
        lambda self, images: tokenised.append(len(images)) or tokenize_images(self, images),
    )
    assert run("caption", *paths, "--model", language_repository) == 0
    assert tokenised == [2, 1]
    alone = [write(model, processor, prompts(processor, images=[one]), 32) for one in pictures(3, seed=6)]
    expected = "".join(f"{path}: {text}\n" for path, text in zip(paths, alone))
    assert capsys.readouterr().out.split() == expected.split() and batches == [2, 1] and len(set(alone)) > 1
    monkeypatch.undo()
    assert run("ask", image, "what is it?", "--model", language_repository) == 0
    answer = write(model, processor, processor.question_prompts("what is it?", images=[picture]), 16)
    assert capsys.readouterr().out.strip() == answer
    for verb, words, inputs in (
        ("caption", [], processor.caption_prompts(images=[picture])),
        ("ask", ["what is it?"], processor.question_prompts("what is it?", images=[picture])),
    ):
        assert run(verb, image, *words, "--model", language_repository, "--max-new-tokens", 3) == 0
        short = write(model, processor, inputs, 3)
        assert " ".join(capsys.readouterr().out.removeprefix(f"{image}:").split()) == " ".join(short.split())


def test_draw(language_repository, tmp_path, capsys):
    def drawn(name, *options):
        assert run("draw", "a red dog", "--output", tmp_path / name, "--model", language_repository, *options) == 0
        return np.asarray(Image.open(tmp_path / name))

    four = drawn("four.png", "--count", 4, "--seed", 3)
    assert four.shape == (2 * SIZE + 4, 2 * SIZE + 4, 3)
    # Drawing k starts from SEED + k, whatever the count.
    second = drawn("second.png", "--seed", 4)
    assert np.abs(second.astype(int) - four[:SIZE, SIZE + 4 :]).max() <= 1
    assert np.array_equal(drawn("again.png", "--count", 4, "--seed", 3), four)
    assert not np.array_equal(drawn("other.png", "--count", 4, "--seed", 9), four)
    # At a temperature the codes are sampled, at 0 they are the repository's likeliest.
    greedy = drawn("cold.png", "--seed", 4, "--token-temperature", 0)
    sampled = drawn("hot.png", "--seed", 4, "--token-temperature", 1.5)
    assert np.array_equal(greedy, second) and not np.array_equal(greedy, sampled)
    pipeline = SeedPipeline.from_pretrained(language_repository, language_model=True)
    generators = [torch.Generator().manual_seed(4)]
    expected = pipeline(prompt=["a red dog"], generator=generators, token_temperature=1.5).images[0]
    assert np.array_equal(sampled, np.asarray(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "missing.png", "--output", "x.png"], "missing.png: no such file"),
        (["tokenize", "missing", "--output", "x.parquet"], "missing: no such file or folder"),
        (["detokenize", "missing.parquet", "--output", "out"], "missing.parquet: no such file"),
        (["demo", "missing.png"], "missing.png: no such file"),
        (["reconstruct", "mine.png", "--output", "no/folder/x.png"], "no/folder: no such folder"),
        (["reconstruct", "mine.png", "--output", "x.qqq"], "x.qqq: no image format has the suffix '.qqq'"),
        (["demo", "--output", "no/x.png"], "no: no such folder"),
        (["reconstruct", "mine.png", "--output", "x.png", "--prefix-length", "40"], "prefix_length is 40"),
        (["demo", "--model", "nowhere", "--output", "x.png"], "'nowhere' is no folder here"),
        (["demo", "--device", "cuda:0"], "no GPU that torch can use"),
        (["demo", "--device", "meta"], "expected cpu, cuda, or cuda:N of a GPU that is here"),
        (["caption", "mine.png"], "has no language model"),
        (["ask", "mine.png", "what?", "--model", "TOKENIZER"], "has no language model"),
        (["draw", "a dog", "--output", "x.png"], "no language model"),
        (["draw", "a dog", "--output", "no/x.png"], "no: no such folder"),
        (["draw", " ", "--output", "x.png"], "The prompt is ' '; expected words"),
        (["ask", "mine.png", ""], "The question is ''; expected words"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, seed_repository, image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [str(seed_repository / "image_tokenizer") if word == "TOKENIZER" else word for word in arguments]
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(seed_repository)]
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("seed: error: ") and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", 2**64), ("--seed", -1), ("--seed", "x"), ("--guidance-scale", "nan"), ("--token-temperature", -1)],
)
def test_numbers_out_of_range_are_named(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("draw", "a dog", "--output", tmp_path / "x.png", f"{option}={value}")
    error = capsys.readouterr().err.splitlines()[-1]
    assert option in error and str(value) in error


def test_broken_pictures_are_all_named_and_the_others_captioned(language_repository, image, tmp_path, capsys):
    broken = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in broken:
        path.write_bytes(b"no picture")
    assert run("caption", broken[0], image, broken[1], "--model", language_repository) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{image}: ") and captured.out.count("\n") == 1
    errors = [line for line in captured.err.splitlines() if line.startswith("seed: error: ")]  # among progress bars
    assert [line.split(": ")[2] for line in errors] == [str(path) for path in broken]


def test_debug_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("tokenize", tmp_path / "missing", "--output", tmp_path / "x.parquet", "--debug")


QUIET = """
import sys
from seed.commands.main import main
repository, image, folder = sys.argv[1:]
model = ["--model", repository, "--device", "cpu"]
for arguments in (
    ["reconstruct", image, "--output", f"{folder}/again.png"],
    ["caption", image],
    ["ask", image, "what is it?"],
    ["draw", "a red dog", "--output", f"{folder}/drawn.png"],
    ["demo", image, "--output", f"{folder}/sheet.png"],
):
    assert main([*arguments, *model]) == 0
print("then bars", file=sys.stderr, flush=True)
assert main(["tokenize", image, "--output", f"{folder}/codes.parquet", *model]) == 0
assert main(["detokenize", f"{folder}/codes.parquet", "--output", f"{folder}/drawings", *model]) == 0
"""


def test_nothing_is_shown_that_a_user_cannot_act_on(language_repository, image, tmp_path):
    command = [sys.executable, "-c", QUIET, str(language_repository), str(image), str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    before, after = shown.stderr.split("then bars\n")
    assert before == ""
    bars = {line.split(":")[0] for line in re.split(r"[\r\n]+", after) if line}
    assert bars == {"tokenize", "draw"}, after
    assert "Loading weights" not in shown.stdout
