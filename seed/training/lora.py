"""LoRA on a frozen language model whose visual modules are trained whole: set up, save, load and merge it."""

import json
import os
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, OPTForCausalLM

from ..configuration_seed_language import SeedVocabularyFields
from ..files_seed import write_json
from ..modeling_seed import SeedModel
from ..modeling_seed_language import (
    VISUAL_MODULES,
    SeedLanguageModelMixin,
    SeedLlamaForCausalLM,
    SeedOPTForCausalLM,
)
from ..processing_seed import SeedProcessor
from ..repository_seed import SeedRepository
from .language_examples import LoraRecipe

# LoRA updates every matrix of the attention and feed-forward layers.
TARGET_MODULES = {
    "seed_opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "seed_llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
EXTENSIONS = {OPTForCausalLM: SeedOPTForCausalLM, LlamaForCausalLM: SeedLlamaForCausalLM}
# The file, beside peft's own, that says which model an adapter fits.
VOCABULARY_FILE = "seed_vocabulary.json"
_VOCABULARY = ("text_vocab_size", "codebook_size", "code_dim", "num_codes", "image_tokenizer_hash", "code_embeddings")


_ADAPTER_CARD = """\
---
{named}library_name: peft
---

LoRA weights of a SEED language model with its visual modules. They fit {base}, extended by the visual tokens:

    from seed.training.lora import load_adapter, merge

    model = load_adapter(model, "this folder")  # or merge(load_adapter(...))

If {base} is a plain text model, `examples/train_language.py --model` with this folder extends it in the same way.
The merged model lies in the folder above. peft and the Auto classes alone do not extend a text model, and do not give
a model the code embeddings that an adapter may have.
"""


def open_language_model(
    name: str | Path,
    image_tokenizer: SeedModel,
    image_processor,
    lora: LoraRecipe,
    dtype: torch.dtype = torch.float32,
    code_embeddings: bool = False,
) -> tuple[PeftModel, SeedProcessor]:
    """
    Load a language model to train, with LoRA, and its processor.

    Args:
        name: folder or Hub id of a text model (OPT or Llama), which is extended by the visual tokens, or of a SEED
            language model; both get new LoRA weights. Or folder or Hub id of an adapter that `save_adapter` wrote, to
            go on from; it names its model.
        image_tokenizer, image_processor: make the codes that the language model reads and writes.
        lora: settings of new LoRA weights; those of an adapter stay as they are.
        dtype: dtype of the frozen weights; the trained ones are float32.
        code_embeddings: whether a model without code embeddings gets them: input embeddings of the codes, which start
            at zero. An adapter keeps what it has.

    Raises:
        TypeError: the model is of another family.
        ValueError: the model or the adapter is for another image tokenizer, or the repository's processor for another
            model; or `code_embeddings` is true and the adapter has none.
    """
    adapter = SeedRepository(name).fetch(["*.json", "*.safetensors"]) if is_adapter(name) else None
    base = adapter_base(adapter) if adapter else str(name)
    if adapter and code_embeddings and not _read_vocabulary(adapter)["code_embeddings"]:
        raise ValueError(
            f"The recipe asks for code_embeddings, but the adapter {name} was trained without. Go on from the merged "
            "model, in the folder above the adapter, which can be given them, or leave them out."
        )
    model, processor = _open_base(base, image_tokenizer, image_processor, dtype, code_embeddings)
    if adapter:
        return load_adapter(model, adapter, trainable=True), processor
    return add_lora(model, lora), processor


def _open_base(name: str, image_tokenizer: SeedModel, image_processor, dtype, code_embeddings: bool):
    SeedRepository(name).fetch(["*.json"])  # raises a clear error if there is no such folder or repository
    config = AutoConfig.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    if isinstance(config, SeedVocabularyFields):
        expected = image_tokenizer.codes_hash()
        if config.image_tokenizer_hash not in (None, expected):
            raise ValueError(
                f"{name} was trained with an image tokenizer of weights {config.image_tokenizer_hash[:12]}...; this "
                f"one has {expected[:12]}.... Pass the one that the model was trained with."
            )
        if code_embeddings:
            model.add_code_embeddings()
        processor = SeedProcessor.from_pretrained(name)
        processor.check_language_model(model)
        return model, processor
    extended = EXTENSIONS.get(type(model))
    if extended is None:
        raise TypeError(f"{name} is a {type(model).__name__}; SEED extends {[c.__name__ for c in EXTENSIONS]}.")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = extended.from_text_model(model, image_tokenizer, len(tokenizer), code_embeddings)
    processor = SeedProcessor(
        image_processor=image_processor,
        tokenizer=SeedProcessor.extend_tokenizer(tokenizer, model.config.codebook_size),
        num_codes=model.config.num_codes,
        codebook_size=model.config.codebook_size,
        image_tokenizer_hash=model.config.image_tokenizer_hash,
    )
    return model, processor


def add_lora(model: SeedLanguageModelMixin, lora: LoraRecipe) -> PeftModel:
    """Add new LoRA weights to a model; they and the visual modules are trained in float32, all else is frozen."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=TARGET_MODULES[model.config.model_type],
        modules_to_save=list(VISUAL_MODULES),
    )
    return _prepare(get_peft_model(model, config))


def load_adapter(model: SeedLanguageModelMixin, name: str | Path, trainable: bool = False) -> PeftModel:
    """
    Load an adapter onto a language model; `merge` then makes them one model.

    A model without code embeddings is given those of the adapter, which peft alone would leave out.

    Args:
        name: folder or Hub id of an adapter that `save_adapter` wrote, or that `Trainer` or peft alone saved. The
            latter does not describe its vocabulary, so that only the number of codes can be checked.

    Raises:
        FileNotFoundError: there is no adapter of a SEED language model.
        ValueError: the adapter is for another vocabulary; the message says what differs.
    """
    folder = SeedRepository(name).fetch(["*.json", "*.safetensors"])
    stored = _read_vocabulary(folder)
    if stored["code_embeddings"]:
        model.add_code_embeddings()
    own = _vocabulary(model)
    known = own if stored.get("base_model") else stored  # all of it, if `save_adapter` wrote it
    differing = [key for key in own if key in known and stored.get(key) != own[key]]
    if differing:
        raise ValueError(
            f"The adapter {name} is for another vocabulary: it has "
            f"{', '.join(f'{key} {stored.get(key)}' for key in differing)}, the model "
            f"{', '.join(f'{key} {own[key]}' for key in differing)}. Load it on the model it was trained on"
            f"{f', {base},' if (base := stored.get('base_model')) else ''} extended with the same image tokenizer."
        )
    return _prepare(PeftModel.from_pretrained(model, folder, is_trainable=trainable))


def save_adapter(model: PeftModel, folder: str | Path, base_model: str) -> None:
    """
    Save the LoRA weights and the visual modules of the active adapter alone, all or nothing.

    Args:
        base_model: folder or Hub id of the frozen model, as given to `open_language_model`.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    name = model.active_adapter
    config = model.peft_config[name]
    config.base_model_name_or_path = base_model
    # Otherwise peft would compare vocabularies, and store the frozen text embedding as well.
    model.save_pretrained(partial, save_embedding_layers=False, selected_adapters=[name])
    config.base_model_name_or_path = ""
    if name != "default":  # peft saves other adapters in a folder of their name
        for file in (partial / name).iterdir():
            os.replace(file, partial / file.name)
        (partial / name).rmdir()
    # The Hub refuses a card whose base_model is not a Hub id.
    named = "" if Path(base_model).exists() else f"base_model: {base_model}\n"
    (partial / "README.md").write_text(_ADAPTER_CARD.format(base=base_model, named=named), encoding="utf-8")
    # A path relative to the adapter is found from any working directory, and both folders can be moved together.
    found = os.path.relpath(Path(base_model).resolve(), folder.resolve()) if Path(base_model).is_dir() else base_model
    vocabulary = _vocabulary(model.get_base_model()) | {"base_model": Path(found).as_posix()}
    write_json(partial / VOCABULARY_FILE, vocabulary)
    earlier = folder.with_name(folder.name + ".earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        os.replace(folder, earlier)
    os.replace(partial, folder)
    shutil.rmtree(earlier, ignore_errors=True)


def merge(model: PeftModel) -> SeedLanguageModelMixin:
    """Return the language model with LoRA and the trained visual modules merged into it; `model` is used up."""
    merged = model.merge_and_unload()
    dtype = merged.get_input_embeddings().weight.dtype
    for name in VISUAL_MODULES:
        getattr(merged, name).to(dtype).requires_grad_(False)
    return merged


def is_adapter(name: str | Path) -> bool:
    """Return whether this folder or Hub id holds an adapter that `save_adapter` wrote."""
    return (SeedRepository(name).fetch(["*.json"]) / VOCABULARY_FILE).is_file()


def adapter_base(name: str | Path) -> str:
    """
    Return the folder or Hub id of the frozen model on which an adapter of `save_adapter` was trained.

    Raises:
        FileNotFoundError: the folder is gone.
    """
    folder = SeedRepository(name).fetch(["*.json"])
    stored = _read_vocabulary(folder)["base_model"]
    beside = os.path.normpath(Path(folder).resolve() / stored)
    if stored.startswith("..") and not os.path.isdir(beside):
        raise FileNotFoundError(f"The adapter {folder} was trained on the model in {beside}, which is not there.")
    return beside if os.path.isdir(beside) else stored


def _prepare(model: PeftModel) -> PeftModel:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # Given a name, peft compares the text model's vocabulary with ours at every checkpoint and, since they differ,
    # stores the frozen embedding. If only its config had no name, it would take the model's.
    model.get_base_model().name_or_path = ""
    model.peft_config[model.active_adapter].base_model_name_or_path = ""
    return model


def _vocabulary(model: SeedLanguageModelMixin) -> dict:
    return {"model_type": model.config.model_type} | {name: getattr(model.config, name) for name in _VOCABULARY}


def _read_vocabulary(folder: Path) -> dict:
    path = folder / VOCABULARY_FILE
    if path.is_file():
        # Older adapters do not mention code embeddings, and have none.
        return {"code_embeddings": False} | json.loads(path.read_text(encoding="utf-8"))
    weights = folder / "adapter_model.safetensors"
    shapes = {}
    if weights.is_file():
        with safe_open(weights, framework="pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
    heads = [shape for name, shape in shapes.items() if name.endswith("visual_head.weight")]
    if not heads:
        raise FileNotFoundError(
            f"{folder} holds no adapter of a SEED language model: {VOCABULARY_FILE} is missing, and so is "
            f"{weights.name} with a visual head."
        )
    code_embeddings = any(name.endswith("visual_embeddings.codes.weight") for name in shapes)
    return {"codebook_size": heads[0][0] - 2, "code_embeddings": code_embeddings}


__all__ = ["add_lora", "adapter_base", "is_adapter", "load_adapter", "merge", "open_language_model", "save_adapter"]
