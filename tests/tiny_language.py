"""A text tokenizer, processor and language model of tiny size, for any test to import."""

import torch
from tiny_repository import make_seed_model, make_seed_repository
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from seed import SeedImageProcessorPil, SeedOPTForCausalLM, SeedProcessor

TEXTS = (
    "A photo of a red square. A photo of a blue circle, a green triangle, a dog and a cat.",
    "Question: What is it? Short answer a red square",
    "Question: Which colour is the circle? Short answer blue",
    "Generate an image a small dog beside a big cat",
    "USER: Compare both pictures. ASSISTANT: The first shows a house, the second a tree.",
)


def tiny_text_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with OPT's special tokens: `</s>` is SOS and EOS, `<pad>` pads. Any text encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )


def words(processor, *texts) -> list[int]:
    """The ids of texts, each by the bare tokenizer."""
    return [token for text in texts for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]]


def image(codes_of_one) -> list[int]:
    """The ids of an image, spelled out: `<img>`, its codes, `</img>`."""
    first = len(tiny_text_tokenizer())
    return [first, *(first + 2 + int(code) for code in codes_of_one), first + 1]


def tiny_processor(folder=None, **settings) -> SeedProcessor:
    """
    A processor for the 32 codes of 64 of `tiny_repository`'s image tokenizer.

    Args:
        folder: a SEED repository to save it into and load it from again, so that it finds the image tokenizer; None
            sets the image tokenizer directly.
    """
    model = make_seed_model()
    processor = SeedProcessor(
        image_processor=SeedImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=SeedProcessor.extend_tokenizer(tiny_text_tokenizer(), model.config.codebook_size),
        **({"codebook_size": model.config.codebook_size, "image_tokenizer_hash": model.codes_hash()} | settings),
    )
    if folder is None:
        processor.set_image_tokenizer(model)
        return processor
    processor.save_pretrained(folder)
    return SeedProcessor.from_pretrained(folder)


def tiny_language_model(code_embeddings: bool = False, **settings) -> SeedOPTForCausalLM:
    """A random OPT, extended by the visual tokens of `tiny_repository`'s image tokenizer; `tiny_processor` fits it."""
    torch.manual_seed(0)
    vocab_size = len(tiny_text_tokenizer())
    config = {
        "vocab_size": vocab_size + 3,  # spare rows, as OPT has
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
        "init_std": 0.5,
        "dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    } | settings
    text_model = OPTForCausalLM(OPTConfig(**config)).eval()
    return SeedOPTForCausalLM.from_text_model(text_model, make_seed_model(), vocab_size, code_embeddings)


def make_language_repository(folder) -> None:
    """A whole SEED-OPT repository: `tiny_repository`'s, with language model and processor."""
    make_seed_repository(folder)
    tiny_language_model().save_pretrained(folder)
    tiny_processor(folder)
