"""The processor: sequences against ids spelled out by hand, the round trip of words and images, and bad input."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from tiny_language import make_language_repository, tiny_processor, tiny_text_tokenizer
from tiny_repository import make_seed_model, make_seed_pipeline, pictures
from transformers import AutoProcessor, AutoTokenizer

from seed import SeedImageProcessorPil, SeedPipeline, SeedProcessor
from seed.chat_templates_seed import INSTRUCTION_CHAT_TEMPLATE
from seed.repository_seed import SeedRepository

SOS = EOS = 2  # </s>
PAD = 1


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def codes():
    return torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))


def words(processor, *texts):
    """Ids by the bare tokenizer, text by text."""
    return [token for text in texts for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]]


def image(codes_of_one):
    first = len(tiny_text_tokenizer())
    return [first, *(first + 2 + int(code) for code in codes_of_one), first + 1]


def learnt(example):
    """The ids with loss, after checking that labels are the ids where they are not -100."""
    assert len(example["input_ids"]) == len(example["labels"])
    assert all(label in (-100, token) for token, label in zip(example["input_ids"], example["labels"]))
    return [label for label in example["labels"] if label != -100]


# The vocabulary ------------------------------------------------------------------------------------------------------


def test_visual_tokens_follow_the_words(processor):
    first = len(tiny_text_tokenizer())
    assert (processor.boi_token_id, processor.eoi_token_id, processor.first_code_token_id) == (
        first,
        first + 1,
        first + 2,
    )
    names = processor.tokenizer.convert_ids_to_tokens([first, first + 1, first + 2, first + 65])
    assert names == ["<img>", "</img>", "<img_00000>", "<img_00063>"]
    assert len(processor.tokenizer) == first + 66
    assert processor.codes_to_ids(torch.tensor([[0, 63]])).tolist() == [[first + 2, first + 65]]
    assert processor.ids_to_codes(torch.tensor([first + 65])).tolist() == [63]
    again = SeedProcessor.extend_tokenizer(processor.tokenizer, 64)
    assert len(again) == first + 66


def test_a_tokenizer_that_does_not_fit_is_refused():
    images = SeedImageProcessorPil()
    with pytest.raises(ValueError, match="has no token <img>.*extend_tokenizer"):
        SeedProcessor(images, tiny_text_tokenizer(), codebook_size=64)
    tokenizer = SeedProcessor.extend_tokenizer(tiny_text_tokenizer(), 64)
    with pytest.raises(ValueError, match="<img_00064>"):
        SeedProcessor(images, tokenizer, codebook_size=128)
    with pytest.raises(ValueError, match=f"<img> has the id {len(tokenizer) - 66}; expected {len(tokenizer) - 34}"):
        SeedProcessor(images, tokenizer, codebook_size=32)
    tokenizer.add_tokens(["later"])
    with pytest.raises(ValueError, match=f"the last 66 of its {len(tokenizer)} ids must be"):
        SeedProcessor(images, tokenizer, codebook_size=64)
    with pytest.raises(ValueError, match="question_prompt is 'Answer'"):
        tiny_processor(question_prompt="Answer")


def test_codes_out_of_range_are_named(processor, codes):
    with pytest.raises(ValueError, match=r"Code 64 is out of range; this codebook has codes 0 \.\. 63"):
        processor.codes_to_ids(torch.tensor([64]))
    with pytest.raises(ValueError, match="Code -1 is out of range"):
        processor(text="<image>", codes=[[-1] * 32])
    with pytest.raises(ValueError, match=r"shape \(31,\); expected \(32,\)"):
        processor.caption_example(codes[0, :31], "a dog")
    with pytest.raises(TypeError, match="dtype torch.float32; expected integers"):
        processor.caption_example(codes[0].float(), "a dog")
    with pytest.raises(ValueError, match="Token id 5 is out of range"):
        processor.ids_to_codes(torch.tensor([5]))


# Sequences -----------------------------------------------------------------------------------------------------------


def test_caption_sequence(processor, codes):
    example = processor.caption_example(codes[0].tolist(), " a red square ")
    answer = [*words(processor, " a red square"), EOS]
    assert example["input_ids"] == [*image(codes[0]), SOS, *words(processor, "A photo of"), *answer]
    assert learnt(example) == answer


def test_drawing_sequence(processor, codes):
    example = processor.drawing_example("a dog", codes[0])
    prompt = [SOS, *words(processor, "Generate an image", " a dog"), EOS]
    assert example["input_ids"] == prompt + image(codes[0])
    assert learnt(example) == image(codes[0])[1:]
    unconditional = processor.drawing_example("", codes[0])
    assert unconditional["input_ids"] == [SOS, *words(processor, "Generate an image"), EOS, *image(codes[0])]


def test_question_sequence(processor, codes):
    example = processor.question_example(np.asarray(codes[0]), "What is it?", "a dog")
    prompt = [*image(codes[0]), SOS, *words(processor, "Question: What is it? Short answer")]
    assert example["input_ids"] == [*prompt, *words(processor, " a dog"), EOS]
    assert learnt(example) == [*words(processor, " a dog"), EOS]


def test_document_sequence(processor, codes):
    from_words = processor.document_example(["Look:", codes[0], "and", codes[1]])
    parts = [*words(processor, "Look:"), *image(codes[0]), *words(processor, "and"), *image(codes[1]), EOS]
    assert from_words["input_ids"] == [SOS, *parts] and learnt(from_words) == parts
    # SOS stands before the first word, wherever that is.
    from_image = processor.document_example([codes[0], "and"])
    assert from_image["input_ids"] == [*image(codes[0]), SOS, *words(processor, "and"), EOS]
    assert learnt(from_image) == [*image(codes[0]), *words(processor, "and"), EOS]
    only_images = processor.document_example([codes[0], codes[1]])
    assert only_images["input_ids"] == [*image(codes[0]), *image(codes[1]), EOS]


def conversation(codes):
    picture = {"type": "image", "codes": codes}
    return [
        {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "red"},
    ]


def test_instruction_sequence(processor, codes):
    example = processor.instruction_example(conversation(codes[0]))
    single = processor.question_example(codes[0], "What is it?", "a dog")
    later = words(processor, "Question: Which colour? Short answer")
    assert example["input_ids"] == [*single["input_ids"], *later, *words(processor, " red"), EOS]
    assert learnt(example) == [*words(processor, " a dog"), EOS, *words(processor, " red"), EOS]
    longer = processor.instruction_example(conversation(codes[0]), chat_template="instruction")
    texts = ("USER: ", "What is it? ASSISTANT:", " a dog")
    expected = [SOS, *words(processor, texts[0]), *image(codes[0]), *words(processor, *texts[1:]), EOS]
    assert longer["input_ids"][: len(expected)] == expected and learnt(longer) == learnt(example)
    with pytest.raises(ValueError, match="and end with 'assistant'"):
        processor.instruction_example(conversation(codes[0])[:3])
    with pytest.raises(ValueError, match="no 'codes'"):
        processor.instruction_example([{"role": "user", "content": [{"type": "image"}]}, conversation(codes[0])[1]])


@pytest.mark.parametrize("text", ["a red square", "x", "Ünïcode, 12 (!)", "two  spaces\nand a line"])
def test_prompts_begin_their_examples(processor, codes, text):
    """What the model is asked at generation is what it was trained on, id for id."""

    def begins(prompts, example):
        prompt = prompts["input_ids"][0].tolist()
        assert prompts["attention_mask"].all()
        assert example["input_ids"][: len(prompt)] == prompt
        assert set(example["labels"][: len(prompt)]) == {-100} and -100 not in example["labels"][len(prompt) :]

    begins(processor.caption_prompts(codes=codes[:1]), processor.caption_example(codes[0], text))
    begins(processor.question_prompts(text, codes=codes[:1]), processor.question_example(codes[0], text, text))
    begins(processor.drawing_prompts(text), processor.drawing_example(text, codes[0]))
    unconditional = processor.unconditional_prompt()
    assert torch.equal(unconditional, processor.drawing_prompts("")["input_ids"])
    assert unconditional[0, -1] == processor.boi_token_id


def test_prompts_are_padded_on_the_left(processor, codes):
    prompts = processor.question_prompts(["What is it?", "Which colour is the circle?"], codes=codes[:2])
    short = processor.question_prompts(["What is it?"], codes=codes[:1])["input_ids"][0]
    gap = prompts["input_ids"].shape[1] - len(short)
    assert gap > 0 and prompts["input_ids"][0].tolist() == [PAD] * gap + short.tolist()
    assert prompts["attention_mask"][0].tolist() == [0] * gap + [1] * len(short)
    with pytest.raises(ValueError, match="1 questions for 2 images"):
        processor.question_prompts("What is it?", codes=codes[:2])


@pytest.mark.parametrize("text", ["<img>", "a </img> b", "see <img_00012>"])
def test_words_cannot_forge_images(processor, codes, text):
    for make in (
        lambda: processor.caption_example(codes[0], text),
        lambda: processor.drawing_prompts(text),
        lambda: processor.document_example([text]),
    ):
        with pytest.raises(ValueError, match="spells visual tokens"):
            make()


def test_words_cannot_forge_the_end(processor, codes):
    """Somebody's "</s>" (HTML's end of what is struck out) is words; a chat template's is the token."""
    for example in (
        processor.caption_example(codes[0], "a cat</s> dog"),
        processor.question_example(codes[0], "what</s>?", "dog"),
        processor.drawing_example("a cat</s> dog", codes[0]),
    ):
        assert example["input_ids"].count(EOS) == 2  # SOS, which is the same token, and the end
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "dog"}]
    assert learnt(processor.instruction_example(turns, "instruction"))[-1] == EOS


def test_empty_answers_teach_nothing(processor, codes):
    with pytest.raises(ValueError, match="The caption is ' '; expected words"):
        processor.caption_example(codes[0], " ")
    with pytest.raises(ValueError, match="The answer is ''"):
        processor.question_example(codes[0], "What is it?", "")


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


def test_chat(processor):
    picture = pictures(1)[0]
    asked = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]}
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = processor.apply_chat_template(asked, **options)
    assert torch.equal(batch["input_ids"], processor.question_prompts("What is it?", images=picture)["input_ids"])
    alone = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    batch = processor.apply_chat_template(alone, **options)
    assert torch.equal(batch["input_ids"], processor.caption_prompts(images=picture)["input_ids"])
    text = processor.apply_chat_template(asked, add_generation_prompt=True, chat_template="instruction")
    assert text == "USER: <image>What is it? ASSISTANT:"
    with pytest.raises(ValueError, match="chat_template is 'instructoin'; expected 'default', 'instruction', or"):
        processor.apply_chat_template(asked, chat_template="instructoin")
    assert processor.apply_chat_template(asked, chat_template="{{ messages | length }}") == "1"


def test_what_was_trained_on_can_be_asked_again(processor, codes):
    """Images of a conversation as codes, as `instruction` data has them."""
    messages = conversation(codes[0])
    prompt = processor.apply_chat_template(messages[:1], tokenize=True, return_dict=True)["input_ids"][0]
    example = processor.instruction_example(messages)["input_ids"]
    assert list(prompt) == example[: len(prompt)] and len(prompt) > 32
    both = [messages[:1], conversation(codes[1])[:1]]
    batch = processor.apply_chat_template(both, tokenize=True, return_dict=True, padding=True)["input_ids"]
    assert list(batch[0]) == list(prompt) and list(batch[1])[1:33] != list(prompt)[1:33]
    mixed = [{"role": "user", "content": [{"type": "image", "codes": codes[0]}, {"type": "image", "url": "a.png"}]}]
    with pytest.raises(ValueError, match="has no 'codes'"):
        processor.apply_chat_template(mixed, tokenize=True, return_dict=True)


def test_the_tokenizer_alone_chats_with_the_processors_prompts(tmp_path):
    """`pipeline("text-generation")` renders by the tokenizer what the processor has saved."""
    tiny_processor(tmp_path, question_prompt='CAPTION: "{}"?')
    text = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "What is it?"}], tokenize=False
    )
    assert text == 'CAPTION: "What is it?"?'
    assert SeedProcessor.from_pretrained(tmp_path).chat_template["default"].count("default(") == 2


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
    import shutil

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
    import shutil

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
