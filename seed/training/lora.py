"""LoRA on a frozen language model, its visual modules trained whole: setting up, saving, loading and merging."""

import json
import os
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, OPTForCausalLM

from ..configuration_seed_language import SeedVocabularyFields
from ..files_seed import write_atomically
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

# Every matrix of attention and feed-forward layers.
TARGET_MODULES = {
    "seed_opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "seed_llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
EXTENSIONS = {OPTForCausalLM: SeedOPTForCausalLM, LlamaForCausalLM: SeedLlamaForCausalLM}
# What an adapter is good for, beside peft's own files.
VOCABULARY_FILE = "seed_vocabulary.json"
_VOCABULARY = ("text_vocab_size", "codebook_size", "code_dim", "num_codes", "image_tokenizer_hash", "code_embeddings")


_ADAPTER_CARD = """\
---
{named}library_name: peft
---

LoRA weights of a SEED language model with its visual modules. They go on {base}, extended by the visual tokens:

    from seed.training.lora import load_adapter, merge

    model = load_adapter(model, "this folder")  # or merge(load_adapter(...))

Where {base} is a plain text model, `examples/train_language.py --model` with this folder extends it in the same way;
the merged model lies in the folder above. peft and the Auto classes alone extend no text model, and give a model no
code embeddings where the adapter has some.
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
    A language model to train, with LoRA, and its processor.

    Args:
        name: folder or Hub id of a text model (OPT or Llama, which is extended by the visual tokens) or of a SEED
            language model, which both get new LoRA weights; or folder or Hub id of an adapter that `save_adapter`
            wrote (it says which model it is for), to go on from.
        image_tokenizer, image_processor: whose codes it reads and writes.
        lora: of new LoRA weights; an adapter's stay as they are.
        dtype: of the frozen weights; what is trained is float32.
        code_embeddings: whether codes get an input embedding of their own, which starts at zero, where the model has
            none yet. An adapter keeps what it has.

    Raises:
        TypeError: a model of another family.
        ValueError: the model or the adapter is for another image tokenizer, or the repository's processor for another
            model; or `code_embeddings` are asked for and the adapter has none.
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
    SeedRepository(name).fetch(["*.json"])  # says so where there is no such folder or repository
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
    """Freezes the model but for new LoRA weights and the visual modules, which are trained in float32."""
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
    A language model with an adapter; `merge` makes them one. A model without code embeddings is given those of the
    adapter (peft alone, without this function, would leave them out).

    Args:
        name: folder or Hub id of what `save_adapter` wrote, or of what `Trainer` or peft alone saved of a model by
            `add_lora`: that says less of its vocabulary, of which no more can be checked then than the number of codes.

    Raises:
        FileNotFoundError: no adapter of a SEED language model there.
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
    Saves LoRA weights and visual modules of the active adapter alone, all or nothing.

    Args:
        base_model: folder or Hub id of the frozen model, as given to `open_language_model`.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    name = model.active_adapter
    config = model.peft_config[name]
    config.base_model_name_or_path = base_model
    # False: peft would otherwise compare vocabularies and store the frozen text embedding, too.
    model.save_pretrained(partial, save_embedding_layers=False, selected_adapters=[name])
    config.base_model_name_or_path = ""
    if name != "default":  # which peft puts into a folder of that name
        for file in (partial / name).iterdir():
            os.replace(file, partial / file.name)
        (partial / name).rmdir()
    # The Hub refuses a card whose base_model is no id.
    named = "" if Path(base_model).exists() else f"base_model: {base_model}\n"
    (partial / "README.md").write_text(_ADAPTER_CARD.format(base=base_model, named=named), encoding="utf-8")
    # Relative to the adapter, so that it is found from any working directory and both can be moved together.
    found = os.path.relpath(Path(base_model).resolve(), folder.resolve()) if Path(base_model).is_dir() else base_model
    vocabulary = _vocabulary(model.get_base_model()) | {"base_model": Path(found).as_posix()}
    write_atomically(partial / VOCABULARY_FILE, json.dumps(vocabulary, indent=2) + "\n")
    earlier = folder.with_name(folder.name + ".earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        os.replace(folder, earlier)
    os.replace(partial, folder)
    shutil.rmtree(earlier, ignore_errors=True)


def merge(model: PeftModel) -> SeedLanguageModelMixin:
    """The language model with LoRA added to its weights and the trained visual modules in place; `model` is used up."""
    merged = model.merge_and_unload()
    dtype = merged.get_input_embeddings().weight.dtype
    for name in VISUAL_MODULES:
        getattr(merged, name).to(dtype).requires_grad_(False)
    return merged


def is_adapter(name: str | Path) -> bool:
    """Whether this folder or Hub id is what `save_adapter` wrote."""
    return (SeedRepository(name).fetch(["*.json"]) / VOCABULARY_FILE).is_file()


def adapter_base(name: str | Path) -> str:
    """Folder or Hub id of the frozen model that an adapter, which `save_adapter` wrote, was trained on."""
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
    # With a name, peft compares the text model's vocabulary with ours at every checkpoint and, as they differ, stores
    # the frozen embedding. Without one in its config it would take the model's.
    model.get_base_model().name_or_path = ""
    model.peft_config[model.active_adapter].base_model_name_or_path = ""
    return model


def _vocabulary(model: SeedLanguageModelMixin) -> dict:
    return {"model_type": model.config.model_type} | {name: getattr(model.config, name) for name in _VOCABULARY}


def _read_vocabulary(folder: Path) -> dict:
    path = folder / VOCABULARY_FILE
    if path.is_file():
        # Adapters that were saved before there were code embeddings have none.
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
