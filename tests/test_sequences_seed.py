"""Vocabulary, sequences and chat templates: token ids against ids that are spelled out by hand."""

import numpy as np
import pytest
import torch
from tiny_language import image, tiny_processor, tiny_text_tokenizer, words
from tiny_repository import pictures
from transformers import AutoTokenizer

from seed import SeedImageProcessorPil, SeedProcessor

SOS = EOS = 2  # </s>
PAD = 1


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def codes():
    return torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))


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


# Conversations -------------------------------------------------------------------------------------------------------


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
