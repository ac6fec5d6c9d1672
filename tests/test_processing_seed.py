"""The processor: words and images in and out, saving, loading, its image tokenizer, and bad input."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from tiny_language import image, make_language_repository, tiny_processor, words
from tiny_repository import make_seed_model, make_seed_pipeline, pictures
from transformers import AutoProcessor

from seed import SeedImageProcessorPil, SeedPipeline, SeedProcessor
from seed.chat_templates_seed import INSTRUCTION_CHAT_TEMPLATE
from seed.repository_seed import SeedRepository

SOS = 2  # </s>
PAD = 1


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def codes():
    return torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))


# Words and images in one call ----------------------------------------------------------------------------------------


def test_interleaved_batch(processor, codes):
    batch = processor(text=["Compare <image> with <image>.", "<image>A photo of", "words"], codes=codes)
    first = [SOS, *words(processor, "Compare "), *image(codes[0]), *words(processor, " with "), *image(codes[1])]
    rows = [
        [*first, *words(processor, ".")],
        [*image(codes[2]), SOS, *words(processor, "A photo of")],
        [SOS, *words(processor, "words")],
    ]
    width = max(len(row) for row in rows)
    assert batch["input_ids"].tolist() == [[PAD] * (width - len(row)) + row for row in rows]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row) for row in rows]
    assert torch.equal(
        batch["input_ids"][1:2, -len(rows[1]) :], processor.caption_prompts(codes=codes[2:])["input_ids"]
    )
    unpadded = processor(text=["<image>", "a"], codes=codes[:1], padding=False, return_tensors=None)
    assert unpadded["input_ids"] == [[*image(codes[0]), SOS], [SOS, *words(processor, "a")]]
    right = processor(text=["words", "w"], padding="max_length", max_length=9, padding_side="right")["input_ids"]
    assert right.shape == (2, 9) and right[1, -1] == PAD and right[0, 0] == SOS


def test_images_become_their_codes(processor):
    images = pictures(3)
    model = make_seed_model()
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    expected = model.get_image_tokens(pixels)
    assert torch.equal(processor.tokenize_images(images), expected)
    one = processor(text="A <image>", images=images[0])
    assert one["input_ids"][0, -34:].tolist() == image(expected[0])
    nested = processor(text=["<image> and <image>", "<image>"], images=[images[:2], images[2:]])
    flat = processor(text=["<image> and <image>", "<image>"], images=images)
    by_codes = processor(text=["<image> and <image>", "<image>"], codes=expected)
    assert torch.equal(nested["input_ids"], flat["input_ids"]) and torch.equal(flat["input_ids"], by_codes["input_ids"])
    assert torch.equal(
        processor.caption_prompts(images=images)["input_ids"], processor.caption_prompts(codes=expected)["input_ids"]
    )


def test_image_settings_may_stand_among_the_arguments(seed_repository):
    processor = SeedProcessor(
        SeedImageProcessorPil(size={"height": 28, "width": 28}), tiny_processor().tokenizer, codebook_size=64
    )
    model = make_seed_model()
    processor.set_image_tokenizer(model)
    raw = torch.rand(3, 28, 28)
    ids = processor(images=raw, do_rescale=False)["input_ids"]
    pixels = processor.image_processor(raw, do_rescale=False, return_tensors="pt")["pixel_values"]
    assert ids[0, 1:33].tolist() == processor.codes_to_ids(model.get_image_tokens(pixels))[0].tolist()
    assert torch.equal(processor(images=raw, images_kwargs={"do_rescale": False})["input_ids"], ids)
    with pytest.raises(TypeError, match="Unknown argument 'do_dance'"):
        processor(images=raw, do_dance=True)


def test_floats_of_diffusers_are_bytes(processor):
    byte = np.asarray(pictures(1)[0])
    scaled, expected = byte.astype(np.float32) / 255, processor.tokenize_images(byte)
    assert torch.equal(make_seed_pipeline().tokenize_images(scaled), expected)
    as_tensor = torch.from_numpy(scaled).permute(2, 0, 1)[None]
    for images in (scaled, [scaled], as_tensor, as_tensor.clone().requires_grad_()):  # which numpy refuses as it is
        assert torch.equal(processor.tokenize_images(images), expected)
    assert processor(images=scaled)["input_ids"][0, :34].tolist() == image(expected[0])


def test_placeholders_and_images_must_agree(processor, codes):
    rows = [list(np.asarray(row)) for row in codes[:2]]  # lists of numpy's integers are codes, not lists of images
    assert torch.equal(processor(codes=rows)["input_ids"], processor(codes=codes[:2])["input_ids"])
    with pytest.raises(ValueError, match="0 <image> placeholders for 3 images"):
        processor(text=[], codes=codes)
    for text, given in [("<image> <image>", 1), ("<image>", 2), ("none", 1), ("<image>", 0)]:
        message = f"{text.count('<image>')} <image> placeholders for {given} images"
        with pytest.raises(ValueError, match=message):
            processor(text=text, codes=codes[:given] if given else None)
    with pytest.raises(ValueError, match=r"have \[1, 2\] <image> placeholders, but \[2, 1\] images"):
        processor(text=["<image>", "<image><image>"], codes=[codes[:2], codes[2:]])
    with pytest.raises(ValueError, match=r"have \[1, 2\] <image> placeholders, but \[2, 1\] images"):
        processor(text=["<image>", "<image><image>"], codes=[np.asarray(codes[:2]), np.asarray(codes[2:])])
    a, b, d = pictures(3)
    for given in ([[a, b], d], [[a, b], np.asarray(d)], [torch.from_numpy(np.stack([a, a])), [d]]):
        with pytest.raises(ValueError, match=r"have \[1, 2\] <image> placeholders, but \[2, 1\] images"):
            processor(text=["<image>", "<image><image>"], images=given)
    assert torch.equal(
        processor(text=["<image>", "<image><image>"], images=[a, [b, d]])["input_ids"],
        processor(text=["<image>", "<image><image>"], images=[a, b, d])["input_ids"],
    )
    assert torch.equal(processor(codes=list(codes[0]))["input_ids"], processor(codes=codes[:1])["input_ids"])
    with pytest.raises(ValueError, match="either images or codes"):
        processor(text="<image>", images=pictures(1), codes=codes[:1])
    for given in ({}, {"images": []}, {"text": []}):
        with pytest.raises(ValueError, match="nothing to make a prompt of"):
            processor(**given)


def test_what_does_not_fit_is_an_error_not_cut(processor, codes):
    with pytest.raises(ValueError, match="Text 1 has 35 tokens with its images, more than the 20 that fit"):
        processor(text=["a", "<image>"], codes=codes[:1], max_length=20)
    with pytest.raises(ValueError, match="would cut images in two"):
        processor(text="<image>", codes=codes[:1], truncation=True)
    with pytest.raises(TypeError, match="'pading'"):
        processor(text="a", pading=True)
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=["a", "a longer text"], padding=False)
    with pytest.raises(ValueError, match="do_resize was passed two times"):
        processor(images=pictures(1), do_resize=True, images_kwargs={"do_resize": True})
    with pytest.raises(TypeError, match="a text or a list of texts"):
        processor(text={"a": 1})
    for make in (processor.caption_prompts, lambda: processor.question_prompts([], images=[]),
                 lambda: processor.drawing_prompts([])):  # fmt: skip
        with pytest.raises(ValueError, match="nothing to make a prompt of"):
            make()


def test_named_arguments_count_beside_text_kwargs(processor):
    texts = ["a", "a longer text"]
    bare = processor(text=texts, padding=False, return_tensors=None, text_kwargs={"add_special_tokens": False})
    assert bare["input_ids"] == [words(processor, text) for text in texts]
    batch = processor(text=texts, padding_side="right", add_special_tokens=False, text_kwargs={"padding": True})
    assert batch["input_ids"][0, 0] == words(processor, "a")[0] and batch["input_ids"][0, -1] == PAD
    with pytest.raises(ValueError, match="more than the 1 that fit"):
        processor(text=texts, max_length=1, text_kwargs={"padding": True})
    with pytest.raises(ValueError, match="return_tensors was passed two times"):
        processor(text=texts, return_tensors="pt", text_kwargs={"return_tensors": None, "padding": False})


# Words and images out ------------------------------------------------------------------------------------------------


def test_words_and_images_come_back_in_order(processor, codes):
    batch = processor(text=["Compare <image> with <image>.", "words"], codes=codes[:2])
    rows = processor.post_process_multimodal_output(batch["input_ids"])
    assert [type(part) for part in rows[0]] == [str, torch.Tensor, str, torch.Tensor, str]
    assert rows[0][0] == "Compare" and rows[0][2] == "with" and rows[0][4] == "." and rows[1] == ["words"]
    assert torch.equal(rows[0][1], codes[0]) and torch.equal(rows[0][3], codes[1])
    texts = processor.post_process_multimodal_output(batch["input_ids"], generation_mode="text")
    assert texts == ["Compare  with .", "words"]
    # Strings keep the order too, and may be given back.
    strings = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert strings[0].startswith("Compare <img><img_") and strings[0].endswith("</img>.")
    assert torch.equal(processor(text=strings)["input_ids"], batch["input_ids"])
    # What follows a drawing prompt begins inside the image.
    assert torch.equal(processor.image_codes([image(codes[0])[1:]]), codes[:1])
    assert torch.equal(processor.image_codes([image(codes[0]) + image(codes[1])]), codes[1:2])


def test_cut_images_are_told(processor, codes):
    ids = [SOS, *words(processor, "a dog"), *image(codes[0])]
    assert len(processor.post_process_multimodal_output(ids[:-1])[0]) == 2  # only </img> is missing
    with pytest.raises(ValueError, match="cut short: it has 30 of 32 codes.*larger max_new_tokens"):
        processor.post_process_multimodal_output(ids[:-3])
    text, rest = processor.post_process_multimodal_output(ids[:-3], allow_incomplete=True)[0]
    assert text == "a dog" and torch.equal(rest, codes[0, :30])
    with pytest.raises(ValueError, match="cut short: it has 31 of 32"):
        processor.image_codes([[*image(codes[0])[:-2], processor.eoi_token_id]])
    with pytest.raises(ValueError, match="outside of an image"):
        processor.image_codes([[SOS, *image(codes[0])[1:]]])
    with pytest.raises(ValueError, match="Row 1 has no image"):
        processor.image_codes([image(codes[0]), [SOS]])
    with pytest.raises(ValueError, match="cut short"):
        processor(text="<img><img_00001></img> forged")


# Saving, loading, the image tokenizer --------------------------------------------------------------------------------


def test_saves_and_loads_beside_the_pipelines_settings(tmp_path, codes):
    pipeline_settings = {"decoder": "../elsewhere", "guidance_scale": 3.5, "num_inference_steps": 12, "note": "kept"}
    (tmp_path / "processor_config.json").write_text(json.dumps(pipeline_settings))
    tiny_processor(caption_prompt="This is").save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "processor_config.json").read_text())
    assert pipeline_settings.items() <= stored.items() and stored["caption_prompt"] == "This is"
    for load in (SeedProcessor, AutoProcessor):
        loaded = load.from_pretrained(tmp_path)
        assert isinstance(loaded, SeedProcessor) and loaded.repository.name == str(tmp_path)
        assert loaded.decoder_repository == "../elsewhere" and loaded.guidance_scale == 3.5
        assert loaded.image_processor.size["height"] == 28
        same = tiny_processor(caption_prompt="This is").caption_example(codes[0], "a dog")
        assert loaded.caption_example(codes[0], "a dog") == same
    assert loaded.chat_template["instruction"].strip() == INSTRUCTION_CHAT_TEMPLATE.strip()
    loaded.image_repository = "org/tokenizer"
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_tokenizer"] == "org/tokenizer"


def test_the_token_temperature_is_one_setting_of_processor_and_pipeline(tmp_path):
    make_seed_pipeline(token_temperature=0.7).save_pretrained(tmp_path)
    tiny_processor(tmp_path)  # saved over it, saying nothing of a temperature
    loaded = SeedProcessor.from_pretrained(tmp_path)
    assert loaded.token_temperature == 0.7
    loaded.token_temperature = 1.25
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["token_temperature"] == 1.25
    assert SeedPipeline.from_pretrained(tmp_path).config.token_temperature == 1.25


def test_finds_the_image_tokenizer_of_its_repository(seed_repository, tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(seed_repository, folder)
    processor = tiny_processor(folder)
    images = pictures(2)
    assert torch.equal(processor.tokenize_images(images), tiny_processor().tokenize_images(images))
    shutil.move(folder / "image_tokenizer", tmp_path / "shared")
    moved = SeedProcessor.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="no folder 'image_tokenizer'"):
        moved.tokenize_images(images)
    moved.image_repository = "../shared"
    assert torch.equal(moved.tokenize_images(images), processor.tokenize_images(images))


def test_finds_its_repository_from_any_working_directory(language_repository, tmp_path, monkeypatch):
    """What is loaded late belongs to where the processor came from, and not to where the process is by then."""
    monkeypatch.chdir(Path(language_repository).parent)
    name = Path(language_repository).name
    processor = SeedProcessor.from_pretrained(name)
    inside = SeedProcessor.from_pretrained(".", subfolder=name)
    monkeypatch.chdir(tmp_path)
    codes = processor.tokenize_images(pictures(1))
    assert codes.shape == (1, 32) and torch.equal(inside.tokenize_images(pictures(1)), codes)
    assert len(processor.draw(codes, num_inference_steps=1)) == 1
    with pytest.raises(ValueError, match="subfolder is 'lm', but .*pass its folder"):
        SeedProcessor.from_pretrained("org/name", subfolder="lm")


def test_images_are_tokenised_on_the_device_that_was_chosen(seed_repository, tmp_path):
    """On the device "meta", which every machine has, and which computes no values."""
    folder = tmp_path / "repository"
    shutil.copytree(seed_repository, folder)
    processor = tiny_processor(folder)
    assert processor.load_image_tokenizer().device.type == "cpu"
    assert processor.to("meta") is processor and processor.load_image_tokenizer().device.type == "meta"
    later = SeedProcessor.from_pretrained(folder).to("meta")
    assert later.load_image_tokenizer().device.type == "meta"
    later.save_pretrained(tmp_path / "saved")
    assert "device" not in (tmp_path / "saved" / "processor_config.json").read_text()


def test_a_hash_that_is_taken_away_is_not_kept_in_the_file(tmp_path):
    processor = tiny_processor(token_temperature=0.5)
    for stored in ("0" * 64, None):
        processor.image_tokenizer_hash = stored
        processor.save_pretrained(tmp_path)
    again = SeedProcessor.from_pretrained(tmp_path)
    assert again.image_tokenizer_hash is None and again.token_temperature == 0.5


def test_what_is_saved_elsewhere_reads_and_draws_at_once(tmp_path):
    make_language_repository(tmp_path / "repository")
    processor = SeedProcessor.from_pretrained(tmp_path / "repository")
    expected = processor.tokenize_images(pictures(2))
    (tmp_path / "there").mkdir()
    processor.save_pretrained(tmp_path / "there" / "saved")
    (tmp_path / "there").rename(tmp_path / "elsewhere")  # not moved out of reach: one level stays one level
    saved = SeedProcessor.from_pretrained(tmp_path / "elsewhere" / "saved")
    assert torch.equal(saved.tokenize_images(pictures(2)), expected)
    assert len(saved.draw(expected, num_inference_steps=1)) == 2
    # Twice removed, and made whole: nothing outside of the folder is needed any more.
    saved.save_pretrained(tmp_path / "whole", whole=True)
    assert saved.image_repository.startswith("../"), "the processor itself still points to where it was loaded from"
    shutil.rmtree(tmp_path / "repository")
    whole = SeedProcessor.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole.tokenize_images(pictures(2)), expected)
    assert len(whole.draw(expected, num_inference_steps=1)) == 2


def test_what_is_pushed_is_whole(tmp_path, monkeypatch):
    make_language_repository(tmp_path / "repository")
    uploaded = []

    def upload_folder(api, *, repo_id, folder_path, **options):
        uploaded.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return "commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **options: SimpleNamespace(repo_id=f"me/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    processor = SeedProcessor.from_pretrained(tmp_path / "repository")
    assert processor.push_to_hub("mine") == "commit"
    processor.save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert [name for name, _ in uploaded] == ["me/mine", "me/mine"]
    for _, files in uploaded:
        assert {"decoder", "image_tokenizer", "processor_config.json", "tokenizer.json"} <= set(files)


@pytest.mark.parametrize("status, create_pr", [(None, False), (403, True), (403, False), (500, True)])
def test_a_push_makes_the_branch_it_goes_to(tmp_path, monkeypatch, status, create_pr):
    """As transformers does: the Hub refuses files for a branch that does not exist."""
    branches = {"main"}

    def create_branch(api, repo_id, *, branch, exist_ok, **options):
        if status is not None:
            answer = SimpleNamespace(status_code=status, headers={}, request=None)
            raise HfHubHTTPError("refused", response=answer)
        branches.add(branch)

    def upload_folder(api, *, revision, create_pr, **options):
        assert revision in branches or create_pr
        return f"commit to {revision}"

    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **options: SimpleNamespace(repo_id=f"me/{repo_id}"))
    monkeypatch.setattr(HfApi, "create_branch", create_branch)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    processor = tiny_processor(tmp_path)
    if status in (None, 403) and (create_pr or status is None):
        assert processor.push_to_hub("mine", revision="v2", create_pr=create_pr) == "commit to v2"
    else:
        with pytest.raises(HfHubHTTPError, match="refused"):
            processor.push_to_hub("mine", revision="v2", create_pr=create_pr)
    branches.add("refs/pr/3")  # the Hub's own, which nobody makes
    assert processor.push_to_hub("mine", revision="refs/pr/3") == "commit to refs/pr/3"


def test_saving_asks_the_hub_as_loading_did(language_repository, tmp_path, monkeypatch):
    """A private repository cannot be read without its token."""
    asked = []

    def snapshot_download(name, allow_patterns, **options):
        asked.append((name, options))
        return str(language_repository)

    processor = SeedProcessor.from_pretrained(language_repository)
    monkeypatch.setattr("seed.repository_seed.snapshot_download", snapshot_download)
    processor.repository = SeedRepository("org/private", token="hf_x", revision="v1")
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "processor_config.json").read_text())
    assert stored["image_tokenizer"] == "org/private/image_tokenizer"
    assert asked and all(call == ("org/private", {"token": "hf_x", "revision": "v1"}) for call in asked)


def test_a_folder_that_is_given_as_decoder_is_that_folder(seed_repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("decoder").mkdir()
    for given in ("decoder", "./decoder", tmp_path / "decoder"):
        for name in (seed_repository, seed_repository / "image_tokenizer"):
            assert SeedRepository(name).decoder_folder(given).samefile(tmp_path / "decoder")
    assert SeedRepository(seed_repository).decoder_folder() == seed_repository / "decoder"
    assert SeedRepository(seed_repository).decoder_folder("image_tokenizer") == seed_repository / "image_tokenizer"


@pytest.mark.parametrize("pointer", [None, "decoder", "../shared"])
def test_draws_with_its_repositorys_decoder_wherever_it_runs(seed_repository, tmp_path, monkeypatch, pointer):
    root, codes = tmp_path / "repository", torch.zeros(1, 32, dtype=torch.long)
    shutil.copytree(seed_repository, root)
    tiny_processor(root)
    processor = SeedProcessor.from_pretrained(root)
    if pointer == "../shared":
        (root / "decoder").rename(tmp_path / "shared")
    processor.decoder_repository = pointer
    (tmp_path / "here" / "decoder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert len(processor.draw(codes, num_inference_steps=1)) == 1


def test_draws_with_the_image_tokenizer_that_it_has(seed_repository, tmp_path):
    shutil.copytree(seed_repository, tmp_path / "repository")
    tiny_processor(tmp_path / "repository")
    processor = SeedProcessor.from_pretrained(tmp_path / "repository")
    codes = torch.randint(0, 64, (1, 32), generator=torch.Generator().manual_seed(0))
    own = make_seed_model()
    own.set_empty_prompt_embeds(torch.randn(1, 77, 40))
    processor.set_image_tokenizer(own)
    asked = []
    own.register_forward_pre_hook(lambda *_: asked.append(True))
    processor.draw(codes, num_inference_steps=1)
    assert asked and processor.load_image_tokenizer() is own
    assert processor._decoder.unet.dtype == own.dtype == torch.float32


def test_another_image_tokenizer_is_refused(processor):
    other = make_seed_model()
    with torch.no_grad():
        other.quantizer.codebook.weight += 1
    with pytest.raises(ValueError, match="the same codes mean other things"):
        processor.set_image_tokenizer(other)
    with pytest.raises(ValueError, match="32 codes out of 32, the processor expects 32 out of 64"):
        processor.set_image_tokenizer(make_seed_model(codebook_size=32))
    lonely = SeedProcessor(processor.image_processor, processor.tokenizer, codebook_size=64)
    with pytest.raises(ValueError, match="call set_image_tokenizer"):
        lonely(text="<image>", images=pictures(1))
