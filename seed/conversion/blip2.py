"""Convert BLIP-2's first-stage weights into a [`SeedModel`] folder, from which stage I starts (paper, section 3.1).

    seed convert blip2 --model Salesforce/blip2-itm-vit-g --output blip2

The source is a repository of transformers' `Blip2ForImageTextRetrieval`: a ViT, a bidirectional Q-Former with its text
branch, and contrastive projections. If a tensor of it is neither used nor on `IGNORED`, or a tensor of the model is not
filled, nothing is written.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, Blip2Config

from ..configuration_seed import SeedConfig
from ..files_seed import read_json
from ..image_processing_seed import SeedImageProcessorPil
from ..modeling_seed import SeedModel
from ..repository_seed import SeedRepository
from .checkpoint_files import check_output, check_tensors, new_folder, write_safetensors
from .seed1 import BERT_LAYER

IGNORED = {
    r"itm_head\..*": "BLIP-2's matching head, which SEED does not use",
    r".*\.position_ids": "a buffer with the numbers 0, 1, 2, ...",
}

# Name in SeedModel -> name in Blip2ForImageTextRetrieval. The ViT and the projections have the same names in both.
_PARAMETERS = {
    "qformer.query_tokens": "query_tokens",
    "qformer.word_embeddings.weight": "embeddings.word_embeddings.weight",
    "qformer.position_embeddings.weight": "embeddings.position_embeddings.weight",
}
# transformers calls BERT's `self` `attention`.
_QFORMER_LAYER = {ours: theirs.replace(".self.", ".attention.") for ours, theirs in BERT_LAYER.items()}
# Settings that Blip2QFormerConfig and SeedQFormerConfig both have.
_QFORMER_SETTINGS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "cross_attention_frequency",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "initializer_range",
    "pad_token_id",
)


def source_name(target: str) -> str:
    """Return the name in `Blip2ForImageTextRetrieval` of the tensor `target` of `SeedModel`."""
    if target in _PARAMETERS:
        return _PARAMETERS[target]
    match = re.fullmatch(r"qformer\.layers\.(\d+)\.(.+)\.(weight|bias)", target)
    if match:
        return f"qformer.encoder.layer.{match[1]}.{_QFORMER_LAYER[match[2]]}.{match[3]}"
    return target


class _SafetensorsFolder(Mapping):
    """The tensors of a transformers folder by name; each is read when it is needed."""

    def __init__(self, folder: Path):
        files = sorted(set(read_json(folder / "model.safetensors.index.json").get("weight_map", {}).values()))
        self._files = {}
        for file in files or ["model.safetensors"]:
            if not (folder / file).is_file():
                raise FileNotFoundError(
                    f"{str(folder)!r} has no {file}: download the repository again. Only safetensors can be read; load "
                    "weights in another format with transformers' Blip2ForImageTextRetrieval and save them again."
                )
            try:
                opened = safe_open(folder / file, framework="pt")
            except SafetensorError as error:
                raise ValueError(
                    f"{str(folder / file)!r} cannot be read ({error}): it is truncated or not a safetensors file; "
                    "download it again."
                ) from error
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self):
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())


def convert_blip2(
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> SeedConfig:
    """
    Convert BLIP-2's image-text retrieval weights into a folder that `SeedModel.from_pretrained` loads.

    The model has a bidirectional Q-Former and no codes: `get_image_features` returns the features of all its queries,
    the best of which counts. Its ViT ends in a LayerNorm with an epsilon of 1e-5, as in LAVIS, with which SEED was
    trained; transformers' BLIP-2 has 1e-6. The conversion needs memory for one shard of the output.

    Args:
        model: folder or Hub id of a `Blip2ForImageTextRetrieval`, e.g. `Salesforce/blip2-itm-vit-g`.
        output: the folder to make, with configuration, weights, image processor, text tokenizer and model card.
        dtype: dtype of the written weights.
        overwrite: whether to replace a SEED model, or an empty folder, in `output`.

    Returns:
        The configuration that was written.

    Raises:
        FileNotFoundError: the source or its weights are missing.
        FileExistsError: `output` exists, and `overwrite` is false or it is not a SEED model.
        ValueError: the source is not a BLIP-2 or has no text branch; its tensors do not make up the model (the error
            lists them by name); or its tokenizer has more entries than the text branch has rows.
    """
    check_output(output, overwrite, [model] if Path(model).exists() else [])
    folder = SeedRepository(model).fetch(["*.json", "*.safetensors", "*.txt"])
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != "blip-2":
        raise ValueError(
            f"{str(model)!r} holds a model of type {model_type!r}; expected BLIP-2's type, 'blip-2', e.g. "
            "Salesforce/blip2-itm-vit-g."
        )
    tensors = _SafetensorsFolder(folder)
    config = _seed_config(model, Blip2Config.from_pretrained(folder), tensors)
    with torch.device("meta"):
        targets = SeedModel(config).state_dict()
    _check(model, tensors, targets)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = config.qformer_config.vocab_size
    # transformers' processor of BLIP-2 adds <image>, which captions never contain; it needs no row in the text branch.
    unread = [word for word, number in tokenizer.get_vocab().items() if number >= rows]
    if unread not in ([], ["<image>"]):
        raise ValueError(
            f"The tokenizer of {str(model)!r} has {len(tokenizer)} entries, the text branch {rows} rows: they do not "
            "belong to one model; download it again."
        )
    config.architectures = ["SeedModel"]
    config.dtype = config.vision_config.dtype = dtype
    image_size = config.vision_config.image_size
    with new_folder(output, overwrite) as written:
        write_safetensors(written, targets, lambda name: tensors[source_name(name)], dtype)
        config.save_pretrained(written)
        SeedImageProcessorPil(size={"height": image_size, "width": image_size}).save_pretrained(written)
        tokenizer.save_pretrained(written)
        (written / "README.md").write_text(_card(model))
    return config


def _seed_config(model: str | os.PathLike, source: Blip2Config, tensors: _SafetensorsFolder) -> SeedConfig:
    words, positions = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position"))
    if words not in tensors or "text_projection.weight" not in tensors:
        raise ValueError(
            f"{str(model)!r} has no text branch, which stage I needs: it is not a Blip2ForImageTextRetrieval. Pass "
            "one, e.g. Salesforce/blip2-itm-vit-g."
        )
    return SeedConfig(
        vision_config=source.vision_config,
        qformer_config={
            **{name: getattr(source.qformer_config, name) for name in _QFORMER_SETTINGS},
            "num_queries": source.num_query_tokens,
            "causal": False,
            "vocab_size": tensors.shape(words)[0],
            "max_position_embeddings": tensors.shape(positions)[0],
        },
        projection_dim=source.image_text_hidden_size,
        use_code_branch=False,
    )


def _check(model: str | os.PathLike, tensors: _SafetensorsFolder, targets: dict[str, torch.Tensor]) -> None:
    """Raise one error that lists every tensor that is missing, has another shape or has no known use."""
    sources = {source_name(name): tuple(tensor.shape) for name, tensor in targets.items()}
    ignored = re.compile("|".join(IGNORED))
    check_tensors(
        f"{str(model)!r} is not a whole Blip2ForImageTextRetrieval; download it again.",
        missing=sources.keys() - tensors.keys(),
        misshapen=[
            f"{name} is {tensors.shape(name)}, expected {shape}"
            for name, shape in sources.items()
            if name in tensors and tensors.shape(name) != shape
        ],
        unknown=[name for name in tensors if name not in sources and not ignored.fullmatch(name)],
    )


def _card(model: str | os.PathLike) -> str:
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [seed, blip-2]",
            "---",
            "",
            "# BLIP-2's first stage, converted",
            "",
            f"Converted by `seed convert blip2` from `{Path(model).name if Path(model).exists() else model}`; weights",
            "are unchanged except for their dtype, and have the names of `SeedModel`. The licence of BLIP-2 applies.",
            "",
            "The model is a bidirectional Q-Former with its text branch and without codes. Stage I of SEED starts from",
            "it (`examples/train_stage1.py --init`), and it is the BLIP-2 row of the paper's Table 1",
            "(`seed evaluate retrieval --bidirectional`).",
            "",
        ]
    )


__all__ = ["convert_blip2", "source_name"]
