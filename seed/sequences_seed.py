"""
The sequences of SEED's language models, as token ids: what they are trained on, and the prompts they answer.

They follow the paper's Figure 4, with the tokenizer's SOS and EOS (both are `</s>` in OPT):

    image to text   <img> codes </img> </s>A photo of CAPTION</s>
    question        <img> codes </img> </s>Question: Q Short answer A</s>
    text to image   </s>Generate an image CAPTION</s><img> codes </img>
    document        words and images in the document's order, then </s>

One rule places SOS everywhere: once per sequence, before its first word. Training and generation encode words in the
same way (the prompt, then the answer with a space before it), so the ids of an example begin with those of its prompt.
"""

from collections.abc import Sequence
from functools import partial

import torch
from transformers import BatchFeature

from .vocabulary_seed import IMAGE_PLACEHOLDER, SeedVocabularyMixin

# The label of a position without loss, which PyTorch's cross-entropy and transformers ignore.
IGNORED = -100


class SeedSequencesMixin(SeedVocabularyMixin):
    """
    The part of [`SeedProcessor`] that makes sequences from words and codes. It needs no image tokenizer.

    Examples are `{"input_ids": list[int], "labels": list[int]}`, unpadded. Labels are aligned with the ids (the model
    shifts them) and are -100 where there is no loss. The codes of one image are a list, an array or a tensor,
    `(num_codes,)`.
    """

    # Training --------------------------------------------------------------------------------------------------------

    def caption_example(self, codes, caption: str) -> dict[str, list[int]]:
        """Make an example that goes from image to text, with loss on the caption and EOS."""
        prompt = self._caption_prompt(codes)
        return self._example((prompt, False), (self._answer(caption, "caption"), True))

    def drawing_example(self, caption: str, codes) -> dict[str, list[int]]:
        """
        Make an example that goes from text to image, with loss on the codes and `</img>`.

        An empty caption gives the unconditional sequence, against which token guidance works.
        """
        prompt = self._drawing_prompt(caption)
        return self._example((prompt, False), (self.image_ids(codes)[1:], True))  # the prompt ends with <img>

    def question_example(self, codes, question: str, answer: str) -> dict[str, list[int]]:
        """Make an example of a question about an image, with loss on the answer and EOS."""
        prompt = self._question_prompt(codes, question)
        return self._example((prompt, False), (self._answer(answer, "answer"), True))

    def document_example(self, segments: Sequence) -> dict[str, list[int]]:
        """
        Make an example of an interleaved document, with loss on everything but SOS.

        Args:
            segments: texts and codes of images, `(num_codes,)` each, in any order. Texts are encoded as they are.
        """
        if not segments:
            raise ValueError("A document needs at least one segment, a text or the codes of an image.")
        ids = []
        for segment in segments:
            ids += self.encode_words(segment) if isinstance(segment, str) else self.image_ids(segment)
        return self._example((ids, True), ([self._eos_token_id], True), add_sos=True)

    def instruction_example(self, messages: Sequence[dict], chat_template: str | None = None) -> dict[str, list[int]]:
        """
        Make an example of a conversation, with loss on the assistant's turns up to EOS.

        Args:
            messages: `{"role": "user" | "assistant" | "system", "content": ...}`, of which the assistant's is the last.
                The content is a text, or a list of `{"type": "text", "text": ...}` and
                `{"type": "image", "codes": ...}`.
            chat_template: the template that `apply_chat_template` takes; it makes the prompts at generation.

        Raises:
            ValueError: the conversation does not begin with another role and end with the assistant; an image has no
                codes; words spell visual tokens; the template lets a longer conversation begin differently than a
                shorter one, or leaves out images.
        """
        messages = list(messages)
        if not messages or messages[-1].get("role") != "assistant" or messages[0].get("role") == "assistant":
            roles = [message.get("role") for message in messages]
            raise ValueError(
                f"The conversation's roles are {roles}; it must begin with 'user' and end with 'assistant'."
            )
        images = iter([self.image_ids(codes) for codes in _codes_of(messages)])
        encode = partial(self.encode_words, special_tokens=True)  # because the template writes such tokens
        parts, done = [], ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:turn], chat_template, add_generation_prompt=True)
            whole = self._render(messages[: turn + 1], chat_template, add_generation_prompt=False)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise ValueError(
                    "This chat template does not let a conversation begin like a shorter one, so the assistant's "
                    "words cannot be told from the rest."
                )
            parts.append((self._fill(prompt[len(done) :], images, encode), False))
            parts.append((self._fill(whole[len(prompt) :], images, encode), True))
            done = whole
        if next(images, None) is not None:
            raise ValueError("The chat template leaves out images of this conversation.")
        return self._example(*parts, add_sos=True)

    # Generation ------------------------------------------------------------------------------------------------------

    def caption_prompts(self, images=None, codes=None) -> BatchFeature:
        """
        Make prompts that ask for captions: `input_ids` and `attention_mask`, `(batch, length)`, padded on the left.

        Args:
            images: one or more images; or
            codes: their codes, `(batch, num_codes)`.
        """
        return self.pad_ids([self._caption_prompt(row) for row in self.read_codes(codes, images)])

    def question_prompts(self, questions: str | Sequence[str], images=None, codes=None) -> BatchFeature:
        """
        Make prompts that ask questions, one for each image, in the form of `caption_prompts`.

        Raises:
            ValueError: there are not as many questions as images.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        rows = self.read_codes(codes, images)
        if len(rows) != len(questions):
            raise ValueError(f"Got {len(questions)} questions for {len(rows)} images; expected one for each image.")
        return self.pad_ids([self._question_prompt(row, question) for row, question in zip(rows, questions)])

    def drawing_prompts(self, texts: str | Sequence[str]) -> BatchFeature:
        """Make prompts that ask for drawings, in the form of `caption_prompts`. They end with `<img>`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        return self.pad_ids([self._drawing_prompt(text) for text in texts])

    def unconditional_prompt(self) -> torch.LongTensor:
        """Make the drawing prompt without a caption, `(1, length)`, for guidance on tokens."""
        return torch.tensor([self._drawing_prompt("")])

    # Parts -----------------------------------------------------------------------------------------------------------

    def _caption_prompt(self, codes) -> list[int]:
        return [*self.image_ids(codes), self._sos_token_id, *self.encode_words(self.caption_prompt)]

    def _question_prompt(self, codes, question: str) -> list[int]:
        words = self.question_prompt.replace("{}", _require_text(question, "question"))
        return [*self.image_ids(codes), self._sos_token_id, *self.encode_words(words)]

    def _drawing_prompt(self, caption: str) -> list[int]:
        words = self.encode_words(self.drawing_prompt)
        if caption.strip():
            words += self.encode_words(" " + caption.strip())
        return [self._sos_token_id, *words, self._eos_token_id, self.boi_token_id]

    def _answer(self, text: str, name: str) -> list[int]:
        return [*self.encode_words(" " + _require_text(text, name)), self._eos_token_id]

    def _example(self, *parts: tuple[list[int], bool], add_sos: bool = False) -> dict[str, list[int]]:
        """Join parts, each of them ids and whether they have loss, to an example."""
        ids = [token for part, _ in parts for token in part]
        labels = [token if learnt else IGNORED for part, learnt in parts for token in part]
        if add_sos and (place := self._sos_place(ids)) is not None:
            ids.insert(place, self._sos_token_id)
            labels.insert(place, IGNORED)
        return {"input_ids": ids, "labels": labels}

    def _sos_place(self, ids: list[int]) -> int | None:
        """Return where SOS belongs: before the first word, or where words would come. None if it is there already."""
        end = len(ids) - 1 if ids and ids[-1] == self.boi_token_id else len(ids)
        place = next((place for place, token in enumerate(ids) if token < self.boi_token_id), end)
        return None if place < len(ids) and ids[place] == self._sos_token_id else place

    def _fill(self, text: str, images, encode=None) -> list[int]:
        """
        Return the ids of a text, in which every placeholder is replaced by the next image.

        Args:
            images: an iterator over the ids of images.
            encode: gives the ids of the words between them. None takes the tokenizer, which reads visual tokens that
                are spelled out among the words.
        """
        encode = encode or (lambda words: self.tokenizer.encode(words, add_special_tokens=False))
        words = text.split(IMAGE_PLACEHOLDER)
        ids = encode(words[0]) if words[0] else []
        for piece in words[1:]:
            if (image := next(images, None)) is None:
                raise ValueError(f"The text has more {IMAGE_PLACEHOLDER} placeholders than there are images.")
            ids += image
            ids += encode(piece) if piece else []
        return ids

    def _render(self, messages: list[dict], chat_template: str | None, add_generation_prompt: bool) -> str:
        return self.apply_chat_template(
            messages, chat_template=chat_template, add_generation_prompt=add_generation_prompt, tokenize=False
        )

    @property
    def _eos_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def _sos_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos


def given_codes(messages: list[dict]) -> list:
    """Return the codes of a conversation's images, in order, or nothing if its images are given otherwise."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
    return _codes_of(messages) if any(part.get("codes") is not None for part in parts) else []


def _codes_of(messages: list[dict]) -> list:
    """Return the codes of a conversation's images, in order. All of them must have codes."""
    found = []
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            if part.get("type") == "image":
                if part.get("codes") is None:
                    raise ValueError("An image of this conversation has no 'codes': tokenise it first.")
                found.append(part["codes"])
    return found


def _require_text(text: str, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"The {name} is {text!r}; expected words.")
    return text.strip()


__all__ = ["IGNORED", "SeedSequencesMixin", "given_codes"]
