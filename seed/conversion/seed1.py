"""Convert the released SEED-1 checkpoint into a [`SeedModel`] folder.

    seed convert seed1 --vit eva_vit_g.pth --causal-qformer causal_qformer.pth --seed-tokenizer seed_tokenizer.pth \\
        --output seed-1

Sizes are read from the tensors, so that checkpoints of any size can be converted; only the numbers of attention heads
are arguments. If a tensor of the files is neither used nor on `IGNORED`, or a tensor of the model is not filled,
nothing is written.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, Blip2VisionConfig

from ..configuration_seed import SeedConfig
from ..image_processing_seed import SeedImageProcessorPil
from ..modeling_seed import SeedModel
from .checkpoint_files import check_output, check_tensors, new_folder, read_state_dict, write_safetensors

VIT = "visual_encoder."
# BLIP-2 leaves out the last of EVA ViT-g's 40 blocks; eva_vit_g.pth still holds it.
EVA_BLOCKS, BLIP2_BLOCKS = 40, 39
# The released code has no switch for causality: a Q-Former of 32 queries is causal, any other is not.
RELEASED_CAUSAL_QUERIES = 32

# Source tensors that the image tokenizer does not need, and why.
IGNORED = {
    r".*\.position_ids": "a buffer with the numbers 0, 1, 2, ...",
    r"Qformer\.cls\..*": "BERT's word prediction, which only captioning uses",
    r"Reverse_Qformer\.cls\..*": "BERT's word prediction, which only captioning uses",
    r"Reverse_Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight": "the Reverse Q-Former reads no words",
    r"Reverse_Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*": "the Reverse Q-Former reads no words",
    r"temp": "temperature of the contrastive loss, which does not change any ranking (the model card names it)",
    r"itm_head\..*": "BLIP-2's matching head, which SEED does not use",
    rf"{VIT}((fc_)?norm|head)\..*|{VIT}mask_token": "EVA's own last norm and heads; ln_vision takes their place",
}
TEXT = (
    r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*|(vision|text)_proj\..*"
)

# Name in SeedModel -> name in the released files.
_VIT_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# The layers of both Q-Formers have BERT's names; `blip2` uses this table too.
BERT_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "cross_attn.q_proj": "crossattention.self.query",
    "cross_attn.k_proj": "crossattention.self.key",
    "cross_attn.v_proj": "crossattention.self.value",
    "cross_attn.out_proj": "crossattention.output.dense",
    "cross_attn_layer_norm": "crossattention.output.LayerNorm",
    "query_mlp.fc1": "intermediate_query.dense",
    "query_mlp.fc2": "output_query.dense",
    "query_mlp_layer_norm": "output_query.LayerNorm",
    "text_mlp.fc1": "intermediate.dense",
    "text_mlp.fc2": "output.dense",
    "text_mlp_layer_norm": "output.LayerNorm",
}
_DECODER_BLOCK = {
    "self_attn_layer_norm": "norm1",
    "self_attn.q_proj": "attn.qkv",
    "self_attn.k_proj": "attn.qkv",
    "self_attn.v_proj": "attn.qkv",
    "self_attn.out_proj": "attn.proj",
    "mlp_layer_norm": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PARAMETERS = {
    "vision_model.embeddings.class_embedding": VIT + "cls_token",
    "vision_model.embeddings.position_embedding": VIT + "pos_embed",
    "qformer.query_tokens": "query_tokens",
    "quantizer.codebook.weight": "quantize.embedding.weight",
    "reconstruction_decoder.position_embeddings": "pos_embed",
    "generation_decoder.position_embeddings": "pos_embed_text",
    "reverse_qformer.query_tokens": "reverse_tokens",
}
_MODULES = {
    "vision_model.embeddings.patch_embedding": VIT + "patch_embed.proj",
    "vision_model.post_layernorm": "ln_vision",
    "qformer.word_embeddings": "Qformer.bert.embeddings.word_embeddings",
    "qformer.position_embeddings": "Qformer.bert.embeddings.position_embeddings",
    "qformer.layernorm": "Qformer.bert.embeddings.LayerNorm",
    "vision_projection": "vision_proj",
    "text_projection": "text_proj",
    "encode_layer.0": "encode_task_layer.0",
    "encode_layer.2": "encode_task_layer.2",
    "decode_layer.0": "decode_task_layer.0",
    "decode_layer.2": "decode_task_layer.2",
    "reverse_qformer.layernorm": "Reverse_Qformer.bert.embeddings.LayerNorm",
    "generation_projection": "distill_text_proj",
}
_LAYERS = {
    "vision_model.encoder.layers": (VIT + "blocks", _VIT_BLOCK),
    "qformer.layers": ("Qformer.bert.encoder.layer", BERT_LAYER),
    "reconstruction_decoder.blocks": ("blocks", _DECODER_BLOCK),
    "generation_decoder.blocks": ("blocks_text", _DECODER_BLOCK),
    "reverse_qformer.layers": ("Reverse_Qformer.bert.encoder.layer", BERT_LAYER),
}


@dataclass
class Seed1Checkpoint:
    """
    The released tensors under one set of names.

    Args:
        tensors: the tensors, named as in the released model; names of the ViT begin with `visual_encoder.`.
        ignored: names of the tensors that this conversion leaves out, beside `IGNORED`.
    """

    tensors: dict[str, torch.Tensor]
    ignored: list[str]

    @classmethod
    def read(
        cls,
        vit: str | os.PathLike | None,
        causal_qformer: str | os.PathLike,
        seed_tokenizer: str | os.PathLike,
        vision_layers: int | None = None,
    ) -> "Seed1Checkpoint":
        """
        Read the released files; see [`convert_seed1`] for the arguments.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file cannot be read, none holds the vision model, or it has fewer blocks than are asked for.
        """
        tensors = {}
        if vit is not None:
            names = _read(vit, "ViT checkpoint")
            prefixed = any(name.startswith(VIT) for name in names)
            tensors.update(names if prefixed else {VIT + name: tensor for name, tensor in names.items()})
        # The files are loaded in the released order: if two of them hold a tensor, that of the later one counts.
        tensors.update(_read(causal_qformer, "Causal Q-Former checkpoint"))
        tensors.update(_read(seed_tokenizer, "SEED tokenizer checkpoint"))
        if not any(name.startswith(VIT) for name in tensors):
            raise ValueError("None of the files holds the vision model (visual_encoder.*); pass --vit eva_vit_g.pth.")
        layers = _count_layers(tensors, VIT + "blocks")
        used = vision_layers or (BLIP2_BLOCKS if layers == EVA_BLOCKS else layers)
        if used > layers:
            raise ValueError(f"--vision-layers is {used}, but the file has {layers} blocks.")
        unused = tuple(f"{VIT}blocks.{layer}." for layer in range(used, layers))
        ignored = [name for name in tensors if name.startswith(unused)] if unused else []
        return cls(tensors, ignored)

    @property
    def has_reconstruction_decoder(self) -> bool:
        """True if the reconstruction decoder is there; checkpoints that the released inference code saved have none."""
        return any(re.match(r"pos_embed$|blocks\.", name) for name in self.tensors)

    @property
    def has_text_branch(self) -> bool:
        """True if some tensor of the text branch is there."""
        return any(re.fullmatch(TEXT, name) for name in self.tensors)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor, which must have `rank` dimensions."""
        if name not in self.tensors:
            raise ValueError(f"The checkpoint lacks {name!r}, which says how large the model is. Is a file missing?")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != rank:
            raise ValueError(f"{name!r} has shape {shape}; expected {rank} dimensions.")
        return shape

    def num_layers(self, prefix: str) -> int:
        """Return the number of layers `prefix.0`, `prefix.1`, ... that are used."""
        return _count_layers({name: None for name in self.tensors if name not in self.ignored}, prefix)

    def cross_attention_frequency(self, prefix: str) -> int:
        """Return the number f for which layers 0, f, 2f, ... have cross-attention."""
        with_cross = [
            layer
            for layer in range(self.num_layers(prefix))
            if any(name.startswith(f"{prefix}.{layer}.crossattention.") for name in self.tensors)
        ]
        frequency = with_cross[1] if len(with_cross) > 1 else self.num_layers(prefix)
        if with_cross != list(range(0, self.num_layers(prefix), frequency)):
            raise ValueError(
                f"{prefix} has cross-attention in layers {with_cross}; expected every n-th layer from 0 on. Are "
                "tensors missing?"
            )
        return frequency

    def source(self, target: str) -> tuple[str, ...]:
        """Return the names of the released tensors that make up the tensor `target` of `SeedModel`."""
        if target in _PARAMETERS:
            return (_PARAMETERS[target],)
        module, _, parameter = target.rpartition(".")
        if module in _MODULES:
            return (f"{_MODULES[module]}.{parameter}",)
        for ours, (theirs, names) in _LAYERS.items():
            match = re.fullmatch(rf"{re.escape(ours)}\.(\d+)\.(.+)", module)
            if match and match[2] in names:
                if ours.startswith("vision_model.") and target.endswith(".qkv.bias"):
                    return tuple(f"{theirs}.{match[1]}.attn.{part}_bias" for part in "qv")
                return (f"{theirs}.{match[1]}.{names[match[2]]}.{parameter}",)
        raise KeyError(f"No rule gives {target!r}.")

    def build(self, target: str) -> torch.Tensor:
        """Build the tensor `target` of `SeedModel`, as a view of the mapped file where possible."""
        sources = [self.tensors[name] for name in self.source(target)]
        if len(sources) == 2:  # EVA has no key bias
            query, value = sources
            return torch.cat([query, torch.zeros_like(query), value])
        if ".blocks." in target:
            part = re.search(r"\.self_attn\.([qkv])_proj\.", target)
            if part:
                return sources[0].chunk(3)["qkv".index(part[1])]
        return sources[0]


def _read(path: str | os.PathLike, what: str) -> dict[str, torch.Tensor]:
    """Read a file's tensors, and remove the prefix that `DistributedDataParallel` puts before all names."""
    tensors = read_state_dict(path, what)
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()} if wrapped else tensors


def _count_layers(tensors: dict, prefix: str) -> int:
    numbers = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def seed1_config(
    checkpoint: Seed1Checkpoint, vision_heads: int = 16, qformer_heads: int = 12, decoder_heads: int = 12
) -> SeedConfig:
    """Make the configuration of a released checkpoint from the shapes of its tensors."""
    shape = checkpoint.shape
    _, positions, vision_width = shape(VIT + "pos_embed", 3)
    patch_size = shape(VIT + "patch_embed.proj.weight", 4)[-1]
    grid = math.isqrt(positions - 1)
    if grid**2 != positions - 1:
        raise ValueError(f"{VIT}pos_embed has {positions} positions; expected a square number and one more.")
    _, num_queries, width = shape("query_tokens", 3)
    reverse_queries = shape("reverse_tokens", 3)[1]
    codebook_size, code_dim = shape("quantize.embedding.weight", 2)
    decoder_width = shape("blocks_text.0.mlp.fc1.weight", 2)[0]
    qformer, reverse_qformer = "Qformer.bert.encoder.layer", "Reverse_Qformer.bert.encoder.layer"
    text = {}
    if checkpoint.has_text_branch:
        embeddings = "Qformer.bert.embeddings"
        text = {
            "vocab_size": shape(f"{embeddings}.word_embeddings.weight", 2)[0],
            "max_position_embeddings": shape(f"{embeddings}.position_embeddings.weight", 2)[0],
        }
    return SeedConfig(
        vision_config=Blip2VisionConfig(
            hidden_size=vision_width,
            intermediate_size=shape(VIT + "blocks.0.mlp.fc1.weight", 2)[0],
            num_hidden_layers=checkpoint.num_layers(VIT + "blocks"),
            num_attention_heads=vision_heads,
            image_size=grid * patch_size,
            patch_size=patch_size,
            layer_norm_eps=1e-6,
            qkv_bias=True,
        ),
        vision_final_norm_eps=1e-5,
        qformer_config={
            "num_queries": num_queries,
            "causal": num_queries == RELEASED_CAUSAL_QUERIES,
            "hidden_size": width,
            "num_hidden_layers": checkpoint.num_layers(qformer),
            "num_attention_heads": qformer_heads,
            "intermediate_size": shape(f"{qformer}.0.intermediate_query.dense.weight", 2)[0],
            "cross_attention_frequency": checkpoint.cross_attention_frequency(qformer),
            **text,
        },
        codebook_size=codebook_size,
        code_dim=code_dim,
        decoder_num_layers=checkpoint.num_layers("blocks_text"),
        decoder_num_heads=decoder_heads,
        decoder_mlp_ratio=_ratio(decoder_width, width),
        reverse_qformer_config={
            "num_queries": reverse_queries,
            "causal": reverse_queries == RELEASED_CAUSAL_QUERIES,
            "num_hidden_layers": checkpoint.num_layers(reverse_qformer),
            "num_attention_heads": qformer_heads,
            "intermediate_size": shape(f"{reverse_qformer}.0.intermediate_query.dense.weight", 2)[0],
            "cross_attention_frequency": checkpoint.cross_attention_frequency(reverse_qformer),
        },
        generation_dim=shape("distill_text_proj.weight", 2)[0],
        projection_dim=shape("vision_proj.weight", 2)[0] if text else 256,
        use_text_branch=checkpoint.has_text_branch,
        use_reconstruction_decoder=checkpoint.has_reconstruction_decoder,
    )


def _ratio(part: int, whole: int) -> float:
    """Return a ratio for which `int(whole * ratio)` is exactly `part`, despite rounding."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, math.inf)


def convert_seed1(
    vit: str | os.PathLike | None,
    causal_qformer: str | os.PathLike,
    seed_tokenizer: str | os.PathLike,
    output: str | os.PathLike,
    *,
    vision_heads: int = 16,
    qformer_heads: int = 12,
    decoder_heads: int = 12,
    vision_layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    text_tokenizer: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> SeedConfig:
    """
    Convert the released SEED-1 files into a folder that `SeedModel.from_pretrained` loads.

    To save memory, the files are mapped, and the output is built shard by shard.

    Args:
        vit: `eva_vit_g.pth`, or None if one of the other files holds `visual_encoder.*`.
        causal_qformer: `causal_qformer.pth`. Without its text parts the converted model has no text branch.
        seed_tokenizer: `seed_tokenizer.pth`.
        output: the folder to make, with configuration, weights, image processor and model card.
        vision_heads, qformer_heads, decoder_heads: numbers of attention heads of the ViT, of both Q-Formers and of both
            code decoders.
        vision_layers: number of ViT blocks to use. None takes all, or 39 of 40, because BLIP-2 and SEED leave out the
            last block of EVA ViT-g.
        dtype: dtype of the written weights; float32 holds the released half-precision ViT exactly.
        text_tokenizer: folder or Hub id of the text branch's tokenizer, bert-base-uncased, which is saved with the
            model. BLIP-2's extra token `[DEC]` is added if it is missing. Only retrieval reads texts.
        overwrite: whether to replace a SEED model, or an empty folder, in `output`.

    Returns:
        The configuration that was written.

    Raises:
        FileNotFoundError: an input is missing.
        FileExistsError: `output` exists, and `overwrite` is false or it is not a SEED model.
        ValueError: an input lies in `output`; a file cannot be read; the tensors do not make up the model (the error
            lists them by name); or the text tokenizer has another vocabulary, or there is no text branch for it.
    """
    counts = {"vision_heads": vision_heads, "qformer_heads": qformer_heads, "decoder_heads": decoder_heads}
    for name, count in (counts | {"vision_layers": vision_layers}).items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; expected 1 or more.")
    # A text tokenizer that is not a folder is a Hub id.
    inputs = [path for path in (vit, causal_qformer, seed_tokenizer, text_tokenizer) if path and Path(path).exists()]
    check_output(output, overwrite, inputs)
    checkpoint = Seed1Checkpoint.read(vit, causal_qformer, seed_tokenizer, vision_layers)
    config = seed1_config(checkpoint, vision_heads, qformer_heads, decoder_heads)
    with torch.device("meta"):
        targets = SeedModel(config).state_dict()
    _check(checkpoint, targets)
    tokenizer = _text_tokenizer(text_tokenizer, config) if text_tokenizer is not None else None
    config.architectures = ["SeedModel"]
    config.dtype = dtype
    image_size = config.vision_config.image_size
    with new_folder(output, overwrite) as folder:
        write_safetensors(folder, targets, checkpoint.build, dtype)
        config.save_pretrained(folder)
        SeedImageProcessorPil(size={"height": image_size, "width": image_size}).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(_card(checkpoint, [vit, causal_qformer, seed_tokenizer]))
    return config


def _text_tokenizer(name: str | os.PathLike, config: SeedConfig):
    if not config.use_text_branch:
        raise ValueError(
            f"The files hold no text branch that could use the text tokenizer {str(name)!r}; leave it out."
        )
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = config.qformer_config.vocab_size
    if "[DEC]" not in tokenizer.get_vocab() and len(tokenizer) < rows:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    if len(tokenizer) != rows:
        raise ValueError(
            f"The text tokenizer {str(name)!r} has {len(tokenizer)} entries, the text branch {rows} rows. "
            "SEED-1 was trained with bert-base-uncased."
        )
    return tokenizer


def _check(checkpoint: Seed1Checkpoint, targets: dict[str, torch.Tensor]) -> None:
    """Raise one error that lists every tensor that is missing, has another shape or has no known use."""
    missing, misshapen, used = [], [], set()
    for target, expected in targets.items():
        sources = checkpoint.source(target)
        used.update(sources)
        absent = [name for name in sources if name not in checkpoint.tensors]
        missing += absent
        if not absent:
            got = tuple(checkpoint.build(target).shape)
            if got != tuple(expected.shape):
                misshapen.append(f"{' + '.join(sources)} gives {got}, {target} is {tuple(expected.shape)}")
    unknown = [
        name
        for name in checkpoint.tensors
        if name not in used
        and name not in checkpoint.ignored
        and not any(re.fullmatch(pattern, name) for pattern in IGNORED)
    ]
    check_tensors(
        "These files are not a whole SEED-1 checkpoint; download them again, or check that they belong together.",
        missing,
        misshapen,
        unknown,
    )


def _card(checkpoint: Seed1Checkpoint, files: list[str | os.PathLike | None]) -> str:
    names = ", ".join(f"`{Path(file).name}` ({Path(file).stat().st_size} bytes)" for file in files if file is not None)
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "tags: [seed, image-tokenizer]",
        "---",
        "",
        "# SEED-1 image tokenizer, converted",
        "",
        f"Converted by `seed convert seed1` from {names}. The weights are unchanged;",
        "their names and layout are those of `SeedModel`.",
        "",
        "The SEED-1 release (branch v1 of its code) is under Apache-2.0, parts of it under BSD-3-Clause (LAVIS). The",
        "vision model is BLIP-2's EVA ViT-g. Those terms apply to these weights too.",
        "",
        "Pictures are converted to RGB, squashed to a square by bicubic interpolation, and normalised with CLIP's mean",
        "and standard deviation.",
    ]
    if not checkpoint.has_text_branch:
        lines += ["", "The source files hold no text parts, so there is no retrieval by text (`get_text_features`)."]
    if not checkpoint.has_reconstruction_decoder:
        lines += ["", "The source files hold no reconstruction decoder, so there is no retrieval by codes alone."]
    if "temp" in checkpoint.tensors:
        temperature = float(checkpoint.tensors["temp"])
        lines += ["", f"Contrastive temperature at the end of stage I: {temperature:.5g}."]
    lines += [
        "",
        "```python",
        "from seed import SeedModel",
        "",
        'model = SeedModel.from_pretrained("PATH_OF_THIS_FOLDER")',
        "```",
        "",
    ]
    return "\n".join(lines)


__all__ = ["BERT_LAYER", "Seed1Checkpoint", "convert_seed1", "seed1_config"]
