"""Configuration of the SEED image tokenizer. The defaults are the paper's numbers (arXiv 2307.08041, section 3)."""

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, Blip2VisionConfig, PreTrainedConfig


@strict
class SeedQFormerConfig(PreTrainedConfig):
    r"""
    Shape of a Q-Former: a BERT whose learned queries read visual features by cross-attention.

    Both of SEED's Q-Formers use it. The Causal Q-Former reads the vision model's patch features; the Reverse Q-Former
    reads the generation decoder's output and writes the generation embeddings.

    Args:
        num_queries (`int`, defaults to 32): number of learned queries. It never decides the mask; `causal` does.
        causal (`bool`, defaults to `True`): query k sees queries 0 .. k only. It is False for the Reverse Q-Former and
            for the bidirectional Q-Former of BLIP-2 from which SEED starts.
        cross_attention_frequency (`int`, defaults to 2): layers 0, f, 2f, ... have cross-attention.
        vocab_size (`int`, defaults to 30523): vocabulary of the text branch, bert-base-uncased plus `[DEC]`.
    """

    model_type = "seed_qformer"

    num_queries: int = 32
    causal: bool = True
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    cross_attention_frequency: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    vocab_size: int = 30523
    max_position_embeddings: int = 512
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _check_counts(self, "num_queries", "num_hidden_layers", "num_attention_heads", "cross_attention_frequency")
        _check_heads("hidden_size", self.hidden_size, self.num_attention_heads)


@strict
class SeedConfig(PreTrainedConfig):
    r"""
    Configuration of [`SeedModel`], the SEED image tokenizer.

    Args:
        vision_config: the frozen vision model, any transformers config whose model returns patch features, as
            `(batch, patches, dim)` or `(batch, dim, height, width)`. The default is BLIP-2's ViT-g at 224 pixels.
        vision_final_norm_eps (`float`, *optional*): epsilon of the vision model's `post_layernorm`. If None, BLIP-2's
            ViT gets 1e-5 as in the released SEED (transformers' BLIP-2 uses 1e-6), and any other vision model keeps
            its own.
        vision_feature_layernorm (`bool`, defaults to `False`): True adds a trained LayerNorm over the patch features,
            for vision models that end without a norm (our choice; BLIP-2's ViT has its own).
        vision_hidden_size (`int`, *optional*): width of the patch features; read from `vision_config` if None.
        qformer_config: the Causal Q-Former.
        codebook_size, code_dim: shape of the VQ codebook, 8192 x 32.
        quantization_loss_weighting (`"legacy"` or `"standard"`): see [`losses_seed.quantization_loss`].
        decoder_num_layers, decoder_num_heads, decoder_mlp_ratio, decoder_layer_norm_eps: shape of both code decoders
            (pre-norm ViT blocks of the Q-Former's width).
        reverse_qformer_config: the Reverse Q-Former; it has 77 queries and 4 layers.
        generation_dim (`int`, defaults to 768): width of the generation embeddings and of Stable Diffusion's text
            features.
        projection_dim (`int`, defaults to 256): width of the contrastive space.
        use_text_branch (`bool`, defaults to `True`): the text side (word embeddings, text feed-forward layers,
            contrastive projections) exists. Tokenising and drawing do not need it, and
            `SeedModel.from_pretrained(..., use_text_branch=False)` does not load it.
        use_code_branch (`bool`, defaults to `True`): the codebook, both code decoders and the Reverse Q-Former exist.
            It is False in the checkpoints of BLIP-2-style pretraining and of stage I, which have not trained them.
        use_reconstruction_decoder (`bool`, defaults to `True`): the code branch has the reconstruction decoder, which
            stage II and retrieval by codes use. It is False for released files that hold only what inference needs.
        has_empty_prompt_embeds (`bool`, defaults to `False`): the text features of the empty prompt, which diffusion
            guidance needs, are stored with the model.
    """

    model_type = "seed"
    sub_configs = {
        "vision_config": AutoConfig,
        "qformer_config": SeedQFormerConfig,
        "reverse_qformer_config": SeedQFormerConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    vision_final_norm_eps: float | None = None
    vision_feature_layernorm: bool = False
    vision_hidden_size: int | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    codebook_size: int = 8192
    code_dim: int = 32
    quantization_loss_weighting: str = "legacy"
    decoder_num_layers: int = 4
    decoder_num_heads: int = 12
    decoder_mlp_ratio: float | int = 4.0
    decoder_layer_norm_eps: float = 1e-6
    reverse_qformer_config: dict | PreTrainedConfig | None = None
    generation_dim: int = 768
    projection_dim: int = 256
    use_text_branch: bool = True
    use_code_branch: bool = True
    use_reconstruction_decoder: bool = True
    has_empty_prompt_embeds: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = Blip2VisionConfig()
        elif isinstance(self.vision_config, dict):
            values = dict(self.vision_config)
            model_type = values.pop("model_type", "blip_2_vision_model")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"vision_config.model_type is {model_type!r}, which this transformers release does not know; "
                    "name one of its vision models, e.g. 'blip_2_vision_model', 'clip_vision_model', 'dinov2'."
                )
            self.vision_config = CONFIG_MAPPING[model_type](**values)
        if self.vision_final_norm_eps is None and self.vision_config.model_type == "blip_2_vision_model":
            self.vision_final_norm_eps = 1e-5
        if self.vision_hidden_size is None:
            self.vision_hidden_size = getattr(self.vision_config, "hidden_size", None) or getattr(
                self.vision_config, "hidden_dim", None
            )
        if self.vision_hidden_size is None:
            raise ValueError(
                f"The width of the features of a {self.vision_config.model_type!r} cannot be read from its config; "
                "pass vision_hidden_size."
            )
        if self.qformer_config is None:
            self.qformer_config = {}
        if isinstance(self.qformer_config, dict):
            self.qformer_config = SeedQFormerConfig(**_without_model_type(self.qformer_config))
        if self.reverse_qformer_config is None:
            self.reverse_qformer_config = {}
        if isinstance(self.reverse_qformer_config, dict):
            reverse = {"num_queries": 77, "num_hidden_layers": 4, "causal": False}
            reverse["hidden_size"] = self.qformer_config.hidden_size
            reverse["num_attention_heads"] = self.qformer_config.num_attention_heads
            reverse["intermediate_size"] = self.qformer_config.intermediate_size
            reverse |= _without_model_type(self.reverse_qformer_config)
            self.reverse_qformer_config = SeedQFormerConfig(**reverse)
        if self.reverse_qformer_config.hidden_size != self.qformer_config.hidden_size:
            raise ValueError(
                f"reverse_qformer_config.hidden_size is {self.reverse_qformer_config.hidden_size}, but the released "
                f"architecture has one width for both Q-Formers; expected {self.qformer_config.hidden_size}."
            )
        if self.quantization_loss_weighting not in ("legacy", "standard"):
            raise ValueError(
                f"quantization_loss_weighting is {self.quantization_loss_weighting!r}; expected 'legacy' (as released) "
                "or 'standard'."
            )
        _check_counts(self, "codebook_size", "code_dim", "decoder_num_heads")
        _check_heads("qformer_config.hidden_size", self.qformer_config.hidden_size, self.decoder_num_heads)
        super().__post_init__(**kwargs)

    @property
    def num_codes(self) -> int:
        """The number of codes of an image: one for each query of the Causal Q-Former (32 in the paper)."""
        return self.qformer_config.num_queries


def _without_model_type(values: dict) -> dict:
    return {key: value for key, value in values.items() if key != "model_type"}


def _check_counts(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected 1 or more.")


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{name} is {width}, which {heads} attention heads do not divide.")


__all__ = ["SeedConfig", "SeedQFormerConfig"]
