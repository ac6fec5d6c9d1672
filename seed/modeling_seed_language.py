"""
The extension that lets a causal language model read and write images: visual tokens beside its own vocabulary.

The text model's embedding and head stay as they are, bit for bit. Two new modules stand beside them, the visual
embeddings and the visual head, so that LoRA saves these whole and never touches a tie between the text model's tables.
"""

import weakref
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, LlamaForCausalLM, OPTForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from .checkpoints_seed import CompleteCheckpointMixin
from .configuration_seed_language import SeedLlamaConfig, SeedOPTConfig, SeedVocabularyFields
from .generation_seed import FROM_ALL_TOKENS, WORD_SEARCH, SeedGenerationMixin
from .modeling_seed_visual_tokens import SeedInputEmbeddings, SeedVisualEmbeddings, VisualLinear
from .repository_seed import SeedRepository

# The modules that are trained whole beside LoRA, as peft's `modules_to_save`.
VISUAL_MODULES = ("visual_embeddings", "visual_head")
_NO_CODE_EMBEDDINGS = (
    "the adapter has code embeddings, and this model has none. Load it with seed.training.lora.load_adapter, which "
    "adds them to the model, or call model.add_code_embeddings() first."
)


class SeedLanguageModelMixin(SeedGenerationMixin, CompleteCheckpointMixin):
    """
    A mixin for a `...ForCausalLM` class of transformers, named before it, that extends the embedding and head by visual
    tokens.

    A subclass names the class that it extends in `text_model_class`. Its configuration class combines
    [`SeedVocabularyFields`] with the configuration class of the text model.
    """

    text_model_class: type[PreTrainedModel]
    input_modalities = ("image", "text")
    output_modalities = ("text", "image")
    _advice_on_new_parts = "a text model gets its visual modules from from_text_model."

    def __init__(self, config):
        total = config.vocab_size
        # The text model builds its tables with `vocab_size` rows, which are the text's rows only.
        config.vocab_size = config.text_embedding_rows
        try:
            super().__init__(config)
        finally:
            config.vocab_size = total
        words = self.get_input_embeddings()
        self.set_input_embeddings(SeedInputEmbeddings(words, config.boi_token_id))
        self.visual_embeddings = SeedVisualEmbeddings(config, words.embedding_dim)
        self.visual_head = VisualLinear(self.lm_head.in_features, 2 + config.codebook_size, bias=False)
        self.post_init()
        self.get_input_embeddings()  # it tells the embedding of the decoder where the visual embeddings are

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.get_input_embeddings()  # a copied or unpickled embedding has no model yet

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SeedVisualEmbeddings):
            init.normal_(module.codebook)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        # peft loads adapters leniently and would leave code embeddings out in silence.
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        if not self.config.code_embeddings and f"{prefix}visual_embeddings.codes.weight" in state_dict:
            errors.append(_NO_CODE_EMBEDDINGS)

    def load_adapter(self, *args, **kwargs):
        """
        Load an adapter as transformers does. `from_pretrained` calls this if it is given an adapter's folder.

        Raises:
            ValueError: the adapter has code embeddings, and this model has none.
        """
        info = super().load_adapter(*args, **kwargs)
        unexpected = getattr(info, "unexpected_keys", None) or ()
        if any("visual_embeddings" in name and name.endswith("codes.weight") for name in unexpected):
            raise ValueError(f"This model cannot be used with the adapter: {_NO_CODE_EMBEDDINGS}")
        return info

    # Words and visual tokens in and out ------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that embeds words and visual tokens; its weight has the words' rows."""
        embeddings = super().get_input_embeddings()
        for module in embeddings.modules():  # the embedding itself, or its copies in a wrapper of peft
            if isinstance(module, SeedInputEmbeddings):
                module.model = weakref.ref(self)
        return embeddings

    def embed_ids(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Embed words and visual tokens, `(batch, length)` -> `(batch, length, dim)`."""
        embeddings = self.get_input_embeddings()
        if isinstance(embeddings, SeedInputEmbeddings):
            words = embeddings(input_ids, words_only=True)
        else:  # wrapped by peft, or replaced
            words = embeddings(input_ids.masked_fill(input_ids >= self.config.boi_token_id, 0))
        return self._put_visual_embeddings(input_ids, words)

    def _put_visual_embeddings(self, input_ids: torch.LongTensor, words: torch.Tensor) -> torch.Tensor:
        first = self.config.boi_token_id
        images = self.visual_embeddings((input_ids - first).clamp(min=0))
        return torch.where((input_ids >= first)[..., None], images.to(words), words)

    def compute_logits(self, hidden_states: torch.Tensor, generation_mode: str | None = None) -> torch.Tensor:
        """
        Return the scores of the next token, `(..., dim)` -> `(..., vocab_size)`.

        Args:
            generation_mode: "text" computes the scores of words only and "image" those of visual tokens only; the other
                tokens get the dtype's minimum. None or "interleaved" computes all scores.
        """
        first, vocab_size = self.config.boi_token_id, self.config.vocab_size
        if generation_mode == "image":
            visual = self.visual_head(hidden_states)
            return nn.functional.pad(visual, (first, 0), value=torch.finfo(visual.dtype).min)
        words = self.lm_head(hidden_states)[..., :first]
        if generation_mode == "text":
            return nn.functional.pad(words, (0, vocab_size - first), value=torch.finfo(words.dtype).min)
        # If the layers are spread over devices, the two heads may be on different ones.
        return torch.cat([words, self.visual_head(hidden_states).to(words)], dim=-1)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        generation_mode: str | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """
        Run the language model as the text model's forward does, with words and visual tokens in `input_ids`.

        Args:
            attention_mask: `(batch, length)`, or `(batch, 1, length, length)` for packed rows, bool (True: attend) or
                additive.
            labels: `(batch, length)`, aligned with `input_ids` (they are shifted here); -100 where there is no loss.
                The cross-entropy is computed over words and visual tokens together, in float32. Only labelled positions
                go through the heads, and in training mode `logits` is None.
            generation_mode: see `compute_logits`.
            num_items_in_batch: number of labels in the whole (accumulated) batch, as `Trainer` counts them. The loss is
                the sum divided by it; None takes the labels given here.
            kwargs: further arguments of the text model's decoder. The cache is one of them, under the name that the
                installed transformers gives it.
        """
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds, input_ids = self.embed_ids(input_ids), None
        if attention_mask is not None and attention_mask.dim() == 4 and attention_mask.dtype == torch.bool:
            attention_mask = self._fit_packed_mask(attention_mask, inputs_embeds.dtype)
        outputs = self.get_decoder()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            loss = self._loss(hidden_states, labels, num_items_in_batch)
        if labels is None or not self.training:
            if isinstance(logits_to_keep, int):
                kept = hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
            else:
                kept = hidden_states[:, logits_to_keep]
            logits = self.compute_logits(kept, generation_mode)
        # They are the cache (whatever transformers calls it), hidden states and attentions, as far as requested.
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        result = CausalLMOutputWithPast(loss=loss, logits=logits, **others)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return result if return_dict else result.to_tuple()

    def _fit_packed_mask(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """
        Return a bool mask in the form that the attention implementation reads. "eager" would add True and False to the
        scores as 1 and 0.
        """
        implementation = self.config._attn_implementation
        if implementation == "eager":
            return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        if implementation != "sdpa":
            raise ValueError(
                f"Packed rows need a mask that the attention {implementation!r} does not read; load the model with "
                "attn_implementation='sdpa', or pad instead of packing."
            )
        return mask

    def _loss(self, hidden_states: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None):
        targets = labels[:, 1:].to(hidden_states.device)
        labelled = targets != -100
        logits = self.compute_logits(hidden_states[:, :-1][labelled]).float()
        # If the layers are spread over devices, the head may be on another one than the last layer.
        targets = targets[labelled].to(logits.device)
        total = nn.functional.cross_entropy(logits, targets, reduction="sum")
        if num_items is None:
            num_items = labelled.sum().clamp(min=1).to(total.device)
        elif torch.is_tensor(num_items):
            num_items = num_items.to(total.device)
        return total / num_items

    # From a text model and back --------------------------------------------------------------------------------------

    @classmethod
    def from_text_model(
        cls,
        text_model: PreTrainedModel,
        seed_model,
        text_vocab_size: int | None = None,
        code_embeddings: bool = False,
    ):
        """
        Extend a text model by the visual tokens of an image tokenizer.

        The new model shares the text model's parameters. Nothing is copied, so this takes seconds at any size. The
        scores of words equal the text model's, bit for bit. The new rows start at the scale of the text model's rows.
        The generation configuration is the text model's, except that words are searched as `WORD_SEARCH` says.

        Args:
            text_model: a pretrained model of `cls.text_model_class`.
            seed_model: the [`SeedModel`] whose codebook the visual embeddings project.
            text_vocab_size: entries of the text tokenizer, `len(tokenizer)`, if the text model's tables have spare rows
                (OPT: 50265 of 50272); None takes all rows.
            code_embeddings: see [`SeedVocabularyFields`].

        Raises:
            TypeError: the text model has another class.
            ValueError: the tokenizer has more entries than the text model has rows, or the text model is quantised,
                offloaded or spread over devices.

        Example:

        ```python
        from transformers import OPTConfig, OPTForCausalLM

        import seed

        # A tiny OPT with random weights; a real one comes from OPTForCausalLM.from_pretrained.
        config = OPTConfig(
            vocab_size=300, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64,
            num_hidden_layers=2, num_attention_heads=2,
        )
        opt = OPTForCausalLM(config)
        seed_model = seed.SeedModel.from_pretrained(seed.default_model(), subfolder="image_tokenizer")
        model = seed.SeedOPTForCausalLM.from_text_model(opt, seed_model)
        assert model.config.vocab_size == 300 + 2 + seed_model.config.codebook_size
        ```
        """
        if not isinstance(text_model, cls.text_model_class) or isinstance(text_model, SeedLanguageModelMixin):
            raise TypeError(
                f"{cls.__name__} extends {cls.text_model_class.__name__}; got a {type(text_model).__name__}."
            )
        spread = len(set((getattr(text_model, "hf_device_map", None) or {"": 0}).values())) > 1
        # The configuration would not tell: it also names formats that were unpacked on loading, such as GGUF.
        quantized = not all(parameter.is_floating_point() for parameter in text_model.parameters())
        if spread or quantized or any(parameter.is_meta for parameter in text_model.parameters()):
            raise ValueError(
                "A text model that is quantised, offloaded or spread over devices cannot be extended in place: load it "
                "whole on one device (dtype='auto' keeps its size), extend it, save it, and load that as you like."
            )
        rows = text_model.get_input_embeddings().num_embeddings
        shared = text_model.config.to_dict()
        for name in ("vocab_size", "model_type", "architectures", "transformers_version", "quantization_config"):
            shared.pop(name, None)
        quantizer = seed_model.quantizer
        config = cls.config_class(
            **shared,
            text_vocab_size=rows if text_vocab_size is None else text_vocab_size,
            text_embedding_rows=rows,
            codebook_size=quantizer.codebook_size,
            code_dim=quantizer.code_dim,
            num_codes=seed_model.config.num_codes,
            image_tokenizer_hash=seed_model.codes_hash(),
            code_embeddings=code_embeddings,
        )
        config._attn_implementation = text_model.config._attn_implementation
        with torch.device("meta"):
            model = cls(config)
        embedding = text_model.get_input_embeddings().weight
        for name in VISUAL_MODULES:
            getattr(model, name).to_empty(device=embedding.device).to(embedding.dtype)
        _share_tensors(text_model, model)
        model._start_visual_modules(quantizer.codebook.weight)
        settings = text_model.generation_config.to_dict()
        settings = {name: value for name, value in settings.items() if name not in FROM_ALL_TOKENS | {"temperature": 1}}
        model.generation_config = GenerationConfig.from_dict(settings | WORD_SEARCH)
        return model.train(text_model.training)

    @torch.no_grad()
    def add_code_embeddings(self) -> None:
        """
        Give every code an input embedding of its own beside the projection of its vector, if there is none yet. It
        starts at zero, so that nothing changes before it is trained.

        Raises:
            ValueError: LoRA has been added already, and its copy of the visual modules would get no code embeddings.
        """
        if self.config.code_embeddings:
            return
        if not isinstance(self.visual_embeddings, SeedVisualEmbeddings):
            raise ValueError("This model has LoRA weights already: add the code embeddings first, or merge them.")
        weight = self.visual_embeddings.projection.weight
        self.visual_embeddings.codes = nn.Embedding(
            self.config.codebook_size, weight.shape[0], device=weight.device, dtype=weight.dtype
        )
        self.visual_embeddings.codes.weight.zero_()
        self.config.code_embeddings = True

    @torch.no_grad()
    def _start_visual_modules(self, codebook: torch.Tensor) -> None:
        """Draw the new rows at about the text rows' scale (our choice), so that training starts from a sane softmax."""
        embeddings, text = self.visual_embeddings, self.get_input_embeddings().weight
        scale = text.float().std()
        embeddings.codebook.copy_(codebook)
        spread = codebook.float().std(dim=0).square().sum().sqrt().clamp(min=1e-6)
        embeddings.projection.weight.normal_(std=float(scale / spread))
        embeddings.projection.bias.copy_(text.float().mean(dim=0))
        if embeddings.codes is not None:
            embeddings.codes.weight.zero_()  # codes start with the projections of their vectors alone
        embeddings.delimiters.weight.normal_(std=float(scale))
        self.visual_head.weight.normal_(std=float(self.lm_head.weight.float().std()))

    @torch.no_grad()
    def merge_into_text_model(self, pad_to_multiple_of: int = 64) -> PreTrainedModel:
        """
        Return a plain model of `text_model_class` with the same scores, for software that knows only that class. Words
        and visual tokens share one table for input and one for output (untied).

        The layers are shared with this model, and the tables are new. The padding rows are the mean of all others,
        which never scores best, and the generation configuration suppresses them.

        Args:
            pad_to_multiple_of: the tables are padded to a multiple of this number of rows.

        Raises:
            ValueError: LoRA has been added and not merged.
        """
        if not isinstance(self.visual_embeddings, SeedVisualEmbeddings):
            raise ValueError("This model has LoRA weights: merge them first, with seed.training.lora.merge.")
        first, vocab_size = self.config.boi_token_id, self.config.vocab_size
        rows = -(-vocab_size // pad_to_multiple_of) * pad_to_multiple_of
        text_config_class = self.text_model_class.config_class
        own = {*SeedVocabularyFields.__dataclass_fields__, "model_type", "architectures", "transformers_version"}
        values = {key: value for key, value in self.config.to_dict().items() if key not in own}
        config = text_config_class(**values | {"tie_word_embeddings": False}, vocab_size=rows)
        config._attn_implementation = self.config._attn_implementation
        with torch.device("meta"):
            merged = self.text_model_class(config)
        embedding = self.get_input_embeddings()
        inputs, outputs = (
            embedding.weight.new_zeros(rows, table.shape[1]) for table in (embedding.weight, self.lm_head.weight)
        )
        inputs[:first], outputs[:first] = embedding.weight[:first], self.lm_head.weight[:first]
        visual_ids = torch.arange(vocab_size - first, device=inputs.device)
        inputs[first:vocab_size], outputs[first:vocab_size] = (
            self.visual_embeddings(visual_ids),
            self.visual_head.weight,
        )
        inputs[vocab_size:], outputs[vocab_size:] = inputs[:vocab_size].mean(0), outputs[:vocab_size].mean(0)
        _share_tensors(self, merged, skip=VISUAL_MODULES)
        merged.set_input_embeddings(
            nn.Embedding.from_pretrained(inputs, freeze=False, padding_idx=embedding.padding_idx)
        )
        merged.lm_head.weight = nn.Parameter(outputs)
        settings = self.generation_config.to_dict()
        suppressed = [*(settings.get("suppress_tokens") or []), *range(vocab_size, rows)]
        merged.generation_config = GenerationConfig.from_dict(settings | {"suppress_tokens": suppressed or None})
        return merged.train(self.training)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs):
        """
        Return the input embeddings unchanged, as the vocabulary is fixed. Scripts call this to make sure that a
        tokenizer's words fit.

        Raises:
            NotImplementedError: another size is asked for. The visual tokens directly follow the words, so that no word
                can be added.
        """
        if new_num_tokens in (None, self.config.vocab_size):
            return self.get_input_embeddings()
        raise NotImplementedError(
            "The vocabulary of a SEED language model is fixed: words, <img>, </img>, codes. Add words to the text "
            "model and its tokenizer, and then extend the text model with from_text_model."
        )


class SeedOPTForCausalLM(SeedLanguageModelMixin, OPTForCausalLM):
    """
    SEED-OPT: an OPT with visual tokens in its vocabulary, which reads and writes images (paper, section 3.3).

    `SeedOPTForCausalLM.from_text_model(opt, seed_model)` extends any OPT; `from_pretrained` loads what was saved.
    """

    config: SeedOPTConfig
    config_class = SeedOPTConfig
    text_model_class = OPTForCausalLM

    def get_decoder(self):
        return self.model.decoder


class SeedLlamaForCausalLM(SeedLanguageModelMixin, LlamaForCausalLM):
    """
    SEED-Llama: a Llama with visual tokens in its vocabulary, the stronger language model of the paper's outlook
    (section 5). It is used like [`SeedOPTForCausalLM`].
    """

    config: SeedLlamaConfig
    config_class = SeedLlamaConfig
    text_model_class = LlamaForCausalLM

    def get_decoder(self):
        return self.model


LANGUAGE_MODELS = {model.config_class.model_type: model for model in (SeedOPTForCausalLM, SeedLlamaForCausalLM)}


def load_language_model(
    repository: SeedRepository | str | Path, dtype: torch.dtype | str = "auto"
) -> SeedOPTForCausalLM | SeedLlamaForCausalLM:
    """
    Load the language model of a SEED repository, in evaluation mode.

    Args:
        repository: a local folder, a Hub id, or a [`SeedRepository`].
        dtype: dtype of the weights; "auto" takes the one in which they were saved.

    Raises:
        ValueError: the repository has no language model.
    """
    if not isinstance(repository, SeedRepository):
        repository = SeedRepository(repository)
    model_type = repository.model_type()
    if model_type not in LANGUAGE_MODELS:
        raise ValueError(
            f"{repository.name!r} has no language model: its config.json is of type {model_type!r}, expected one of "
            f"{sorted(LANGUAGE_MODELS)}. To caption, answer or draw from words, name a repository with SEED-OPT."
        )
    folder = repository.fetch(["*.json", "model*.safetensors"])
    return LANGUAGE_MODELS[model_type].from_pretrained(folder, dtype=dtype).eval()


def _share_tensors(source: nn.Module, target: nn.Module, skip: tuple[str, ...] = ()) -> None:
    """Give `target` the parameters and buffers of `source`, by name."""
    tensors = dict(source.named_parameters(remove_duplicate=False)) | dict(source.named_buffers(remove_duplicate=False))
    for name, tensor in tensors.items():
        if name.startswith(skip):
            continue
        path, _, leaf = name.rpartition(".")
        module = target.get_submodule(path)
        (module._parameters if leaf in module._parameters else module._buffers)[leaf] = tensor


__all__ = [
    "LANGUAGE_MODELS",
    "VISUAL_MODULES",
    "SeedLanguageModelMixin",
    "SeedLlamaForCausalLM",
    "SeedOPTForCausalLM",
    "load_language_model",
]
