"""SEED's image tokenizer: an image to 32 causal codes, and codes to Stable Diffusion's text-feature space."""

import hashlib
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from torch import nn
from transformers import MODEL_MAPPING, Blip2VisionConfig, Blip2VisionModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .checkpoints_seed import CompleteCheckpointMixin
from .configuration_seed import SeedConfig
from .modeling_seed_qformer import SeedAttention, SeedMLP, SeedQFormer
from .quantization_seed import SeedCodebook, SeedVectorQuantizer

# The parts that decide an image's codes. The Q-Former's text side is not among them, and may not be loaded.
_MAKES_CODES = re.compile(r"(vision_model|vision_layernorm|qformer|encode_layer|quantizer)\b")
_READS_TEXT = re.compile(r"qformer\.(word_embeddings|position_embeddings|layers\.\d+\.text_mlp)")


@dataclass
class SeedOutput(ModelOutput):
    """
    The output of [`SeedModel`].

    Args:
        causal_embeddings (`torch.FloatTensor` of shape `(batch, num_codes, hidden_size)`): output of the Causal
            Q-Former; None if the model was given codes.
        codes (`torch.LongTensor` of shape `(batch, num_codes)`): indices into the codebook.
        generation_embeddings (`torch.FloatTensor` of shape `(batch, 77, generation_dim)`): output of the Reverse
            Q-Former, in Stable Diffusion's text-feature space.
    """

    causal_embeddings: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    generation_embeddings: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class SeedDecoderBlock(GradientCheckpointingLayer):
    """A pre-norm ViT block, bidirectional over the codes that are given."""

    def __init__(self, config: SeedConfig):
        super().__init__()
        width, eps = config.qformer_config.hidden_size, config.decoder_layer_norm_eps
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn = SeedAttention(config, width, config.decoder_num_heads, width)
        self.mlp_layer_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = SeedMLP(width, int(width * config.decoder_mlp_ratio))

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        attended, _ = self.self_attn(self.self_attn_layer_norm(hidden_states), attention_mask=attention_mask)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_layer_norm(hidden_states))


class SeedCodeDecoder(nn.Module):
    """
    A transformer from code vectors, raised to the Q-Former's width, to embeddings of the same shape (paper, section
    3.2).

    SEED has two: the reconstruction decoder learns to recover the causal embeddings, and the Reverse Q-Former reads the
    output of the generation decoder.
    """

    def __init__(self, config: SeedConfig):
        super().__init__()
        self.config = config
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.num_codes, config.qformer_config.hidden_size))
        self.blocks = nn.ModuleList(SeedDecoderBlock(config) for _ in range(config.decoder_num_layers))

    def forward(self, hidden_states: torch.Tensor, code_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Return embeddings of the codes, `(batch, k, hidden_size)`.

        Args:
            hidden_states: `(batch, k, hidden_size)`, the raised vectors of the first k <= num_codes codes.
            code_mask: `(batch, k)`, False where a code is missing and must not be seen.
        """
        hidden_states = hidden_states + self.position_embeddings[:, : hidden_states.shape[1]]
        mask = None
        if code_mask is not None:
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=code_mask)
        for block in self.blocks:
            hidden_states = block(hidden_states, attention_mask=mask)
        return hidden_states


class SeedPreTrainedModel(CompleteCheckpointMixin, PreTrainedModel):
    config: SeedConfig
    config_class = SeedConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["SeedQFormerLayer", "SeedDecoderBlock"]
    _can_record_outputs = SeedQFormer._can_record_outputs

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SeedCodeDecoder):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, SeedCodebook):
            # This is the released start; stage II may move the codes onto the data (`initialize_from_data`).
            bound = 1.0 / module.num_embeddings
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, SeedModel):
            if self.config.has_empty_prompt_embeds:
                init.zeros_(module.empty_prompt_embeds)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a checkpoint as [`CompleteCheckpointMixin.from_pretrained`] does; the vision model stays frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, SeedModel):
                module.vision_model.requires_grad_(False)  # loading made new parameters
        return loaded


class SeedModel(SeedPreTrainedModel):
    """
    The SEED image tokenizer.

    `get_image_tokens` turns images into codes; `decode_image_tokens` turns codes into generation embeddings, from
    which a Stable Diffusion UNet draws ([`SeedPipeline`]); `get_image_features` and `get_text_features` give the
    contrastive features of retrieval. The vision model is frozen: it gets no gradient and stays in evaluation mode.

    `use_text_branch` and `use_code_branch` in the config say which parts exist.

    FlashAttention cannot read the Q-Former's masks. Use it for the vision model alone, where nearly all of the time is
    spent: `from_pretrained(..., attn_implementation={"vision_config": "flash_attention_2"})`.

    Example:

    ```python
    from PIL import Image

    import seed

    repository = seed.default_model()  # or another SEED repository, a folder or a Hub id
    model = seed.SeedModel.from_pretrained(repository, subfolder="image_tokenizer")
    image_processor = seed.SeedImageProcessorPil.from_pretrained(repository, subfolder="image_tokenizer")
    images = [Image.new("RGB", (256, 256), colour) for colour in ("red", "blue")]
    codes = model.get_image_tokens(**image_processor(images, return_tensors="pt"))  # (2, 32)
    generation_embeddings = model.decode_image_tokens(codes)  # (2, 77, generation_dim)
    ```
    """

    _keys_to_ignore_on_load_unexpected = [
        r"qformer\.(word|position)_embeddings",
        r"qformer\.layers\.\d+\.text_mlp",
        r"(vision|text)_projection",
        r"^(encode_layer|quantizer|decode_layer|reconstruction_decoder|generation_decoder|reverse_qformer)\.",
        r"^generation_projection",
        r"^empty_prompt_embeds",
    ]

    # `codes_hash` remembers the checksums of the weights and their hash here.
    _known_codes_hash: tuple[dict, str] = ({}, "")

    def __init__(self, config: SeedConfig):
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.vision_model = _build_vision_model(config.vision_config)
        self.vision_model.requires_grad_(False)
        self.vision_model.eval()  # A new model is in training mode, in which BatchNorm would change with every picture.
        if config.vision_final_norm_eps is not None and hasattr(self.vision_model, "post_layernorm"):
            self.vision_model.post_layernorm.eps = config.vision_final_norm_eps
        if config.vision_feature_layernorm:
            self.vision_layernorm = nn.LayerNorm(config.vision_hidden_size)
        self.qformer = SeedQFormer(config.qformer_config, config.vision_hidden_size, config.use_text_branch)
        if config.use_text_branch:
            self.vision_projection = nn.Linear(width, config.projection_dim)
            self.text_projection = nn.Linear(width, config.projection_dim)
        if config.use_code_branch:
            self.encode_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_dim))
            self.quantizer = SeedVectorQuantizer(
                config.codebook_size, config.code_dim, config.quantization_loss_weighting
            )
            self.decode_layer = nn.Sequential(
                nn.Linear(config.code_dim, config.code_dim), nn.Tanh(), nn.Linear(config.code_dim, width)
            )
            if config.use_reconstruction_decoder:
                self.reconstruction_decoder = SeedCodeDecoder(config)
            self.generation_decoder = SeedCodeDecoder(config)
            self.reverse_qformer = SeedQFormer(config.reverse_qformer_config, width)
            self.generation_projection = nn.Linear(width, config.generation_dim)
        if config.has_empty_prompt_embeds:
            shape = (1, config.reverse_qformer_config.num_queries, config.generation_dim)
            self.register_buffer("empty_prompt_embeds", torch.zeros(shape))
        self.post_init()

    def train(self, mode: bool = True) -> "SeedModel":
        super().train(mode)
        self.vision_model.eval()
        return self

    # Images in ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def get_vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Return the patch features of the frozen vision model, `(batch, 3, height, width)` -> `(batch, patches,
        vision_dim)`.

        They can be cached and given to the other methods as `vision_features`.
        """
        # Convolutional vision models run 1.8 times as fast in this layout on a CPU.
        pixel_values = pixel_values.to(self.dtype, memory_format=torch.channels_last)
        features = self.vision_model(pixel_values).last_hidden_state
        return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features

    def get_causal_embeddings(
        self, pixel_values: torch.Tensor | None = None, vision_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Return the output of the Causal Q-Former (paper, section 3.1), `(batch, num_codes, hidden_size)`.

        Embedding k depends on queries 0 .. k only. Give `pixel_values` or cached `vision_features`.
        """
        return self.qformer(self.encode_vision(pixel_values, vision_features))

    def encode_vision(
        self, pixel_values: torch.Tensor | None = None, vision_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what the Q-Former reads: patch features, normalised if `vision_feature_layernorm` is set."""
        _require_one(pixel_values=pixel_values, vision_features=vision_features)
        if vision_features is None:
            vision_features = self.get_vision_features(pixel_values)
        vision_features = vision_features.to(self.dtype)
        return self.vision_layernorm(vision_features) if self.config.vision_feature_layernorm else vision_features

    def get_image_tokens(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        causal_embeddings: torch.Tensor | None = None,
    ) -> torch.LongTensor:
        """
        Return the codes of images (tokenise), `(batch, num_codes)`, from exactly one of the arguments.

        Args:
            pixel_values: `(batch, 3, height, width)`.
            vision_features: `(batch, patches, vision_dim)`.
            causal_embeddings: `(batch, num_codes, hidden_size)`.

        Raises:
            ValueError: there is not exactly one argument, or the vectors to quantise are not all finite.
        """
        self._require_code_branch()
        _require_one(pixel_values=pixel_values, vision_features=vision_features, causal_embeddings=causal_embeddings)
        if causal_embeddings is None:
            causal_embeddings = self.get_causal_embeddings(pixel_values, vision_features)
        vectors = self.encode_causal_embeddings(causal_embeddings)
        if not (torch.compiler.is_compiling() or vectors.is_meta or torch.isfinite(vectors).all()):
            raise ValueError(
                f"The vectors to quantise are not all finite, in {vectors.dtype}: the weights are damaged, or the "
                "computation overflows. Use bfloat16 or float32 instead of float16, or load the checkpoint again."
            )
        return self.quantizer.nearest_codes(vectors)

    def encode_causal_embeddings(self, causal_embeddings: torch.Tensor) -> torch.Tensor:
        """Return the vectors to quantise, `(batch, num_codes, hidden_size)` -> `(batch, num_codes, code_dim)`."""
        return self.encode_layer(causal_embeddings)

    # Codes out ------------------------------------------------------------------------------------------------------

    def decode_image_tokens(
        self,
        codes: torch.LongTensor,
        prefix_length: int | None = None,
    ) -> torch.Tensor:
        """
        Return the generation embeddings of codes (de-tokenise), `(batch, 77, generation_dim)`.

        Args:
            codes: `(batch, num_codes)`.
            prefix_length: decode from the first k codes only; the others are not seen (our addition: the codes are in
                causal order, so every prefix is a coarser account of the image).

        Raises:
            TypeError: the codes are not integers.
            ValueError: their number or range is wrong, or prefix_length lies outside 1 .. num_codes.
        """
        code_vectors = self._code_vectors(codes, prefix_length)
        return self.generate_embeddings(code_vectors)

    def reconstruct_causal_embeddings(self, codes: torch.LongTensor) -> torch.Tensor:
        """
        Return the causal embeddings that the reconstruction decoder recovers from codes, `(batch, num_codes,
        hidden_size)`.
        """
        self._require_code_branch()
        if not self.config.use_reconstruction_decoder:
            raise ValueError(
                "This image tokenizer has no reconstruction decoder: the files it was converted from hold none. "
                "Compute features of images from pixel_values instead of codes."
            )
        return self.reconstruction_decoder(self.decode_layer(self._code_vectors(codes, None)))

    def generate_embeddings(self, code_vectors: torch.Tensor, code_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Run the generation decoder and the Reverse Q-Former, `(batch, k, code_dim)` -> `(batch, 77, generation_dim)`.

        Args:
            code_mask: `(batch, k)`, False where a code is missing.
        """
        decoded = self.generation_decoder(self.decode_layer(code_vectors.to(self.dtype)), code_mask)
        generated = self.reverse_qformer(decoded, encoder_attention_mask=code_mask)
        return self.generation_projection(generated)

    # The contrastive space ------------------------------------------------------------------------------------------

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.LongTensor | None = None,
        vision_features: torch.Tensor | None = None,
        causal_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Return L2-normalised contrastive features of images, from exactly one of the arguments.

        Returns:
            `(batch, projection_dim)`, the feature of the last query, which alone has seen all others (paper, section
            3.1). A bidirectional Q-Former (BLIP-2) gives `(batch, num_queries, projection_dim)`; the query most similar
            to a text counts.
        """
        self._require_text_branch()
        _require_one(
            pixel_values=pixel_values,
            codes=codes,
            vision_features=vision_features,
            causal_embeddings=causal_embeddings,
        )
        if codes is not None:
            causal_embeddings = self.reconstruct_causal_embeddings(codes)
        elif causal_embeddings is None:
            causal_embeddings = self.get_causal_embeddings(pixel_values, vision_features)
        if self.config.qformer_config.causal:
            causal_embeddings = causal_embeddings[:, -1]
        return nn.functional.normalize(self.vision_projection(causal_embeddings).float(), dim=-1)

    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Return L2-normalised contrastive features of texts, `(batch, length)` -> `(batch, projection_dim)`, read from
        the first token (`[CLS]`).
        """
        self._require_text_branch()
        hidden_states = self.qformer(input_ids=input_ids, attention_mask=attention_mask)
        return nn.functional.normalize(self.text_projection(hidden_states[:, 0]).float(), dim=-1)

    # One call -------------------------------------------------------------------------------------------------------

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.LongTensor | None = None,
        prefix_length: int | None = None,
        **kwargs,
    ) -> SeedOutput:
        """
        Turn images into codes and these into generation embeddings, or given codes into generation embeddings.

        Args:
            pixel_values: `(batch, 3, height, width)`.
            codes: `(batch, num_codes)`, instead of `pixel_values`.
            prefix_length: see [`SeedModel.decode_image_tokens`].
        """
        _require_one(pixel_values=pixel_values, codes=codes)
        causal_embeddings = None
        if codes is None:
            causal_embeddings = self.get_causal_embeddings(pixel_values)
            codes = self.get_image_tokens(causal_embeddings=causal_embeddings)
        return SeedOutput(
            causal_embeddings=causal_embeddings,
            codes=codes,
            generation_embeddings=self.decode_image_tokens(codes, prefix_length),
        )

    def set_empty_prompt_embeds(self, embeds: torch.Tensor) -> None:
        """
        Store the text features of the empty prompt, `(1, 77, generation_dim)`. Diffusion guidance needs them; with
        them stored, drawing from codes needs no text encoder.
        """
        expected = (1, self.config.reverse_qformer_config.num_queries, self.config.generation_dim)
        if tuple(embeds.shape) != expected:
            raise ValueError(f"The empty prompt's features have shape {tuple(embeds.shape)}; expected {expected}.")
        self.config.has_empty_prompt_embeds = True
        self.register_buffer("empty_prompt_embeds", embeds.detach().clone().to(self.device, self.dtype))

    @torch.no_grad()
    def initialize_code_layers(self, causal_embeddings: torch.Tensor, scale: float = 0.25) -> None:
        """
        Start the layers around the codebook on the principal components of causal embeddings (our choice): the encode
        layer projects onto the first `code_dim`, the decode layer goes back, both in the linear part of their tanh.

        Args:
            causal_embeddings: `(n, num_codes, hidden_size)`; some thousand rows in all are enough.
            scale: the factor from a component to the code vector's coordinate.
        """
        width, code_dim = self.decode_layer[2].out_features, self.config.code_dim
        rows = causal_embeddings.reshape(-1, width).float()
        mean = rows.mean(dim=0)
        # Components of the variation within a position: what a position always says needs no code.
        centred = (causal_embeddings.float() - causal_embeddings.float().mean(dim=0)).reshape(-1, width)
        _, components = torch.linalg.eigh(centred.T @ centred / len(centred))
        components = components.flip(1)[:, :code_dim]
        small = 0.1  # tanh(0.1 x) is 0.1 x within a percent or so, for embeddings of about unit scale
        encode, decode = self.encode_layer, self.decode_layer
        encode[0].weight.copy_(small * torch.eye(width))
        encode[0].bias.copy_(-small * mean)
        encode[2].weight.copy_(components.T * (scale / small))
        encode[2].bias.zero_()
        decode[0].weight.copy_(small / scale * torch.eye(code_dim))
        decode[0].bias.zero_()
        decode[2].weight.copy_(components / small)
        decode[2].bias.copy_(mean)

    def codes_hash(self) -> str:
        """
        Return the SHA-256 of the weights that decide an image's codes. It is stored with codes, with the language model
        that reads them and with its processor.

        The values are hashed as float32, so that a checkpoint in bfloat16 has one hash in whatever dtype it is loaded;
        the text branch and what follows the codebook do not count. It is computed once, and again only after a change
        of the weights.
        """
        tensors = self.state_dict()
        if any(tensor.is_meta for tensor in tensors.values()):  # offloaded by accelerate
            tensors = get_state_dict_offloaded_model(self)
        tensors = {
            name: tensor
            for name, tensor in sorted(tensors.items())
            if _MAKES_CODES.match(name) and not _READS_TEXT.match(name)
        }
        # Checksums of the values show a change in a fraction of the hash's time. The tensors' version counters would
        # cost nothing, but they miss what is written through `.data` or NumPy.
        checksums = {
            name: (tensor.dtype, tensor.shape, zlib.crc32(_bytes_of(tensor))) for name, tensor in tensors.items()
        }
        known, codes_hash = self._known_codes_hash
        if checksums != known:
            digest = hashlib.sha256()
            for name, tensor in tensors.items():
                tensor = tensor.float() if tensor.is_floating_point() else tensor
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(_bytes_of(tensor))
            codes_hash = digest.hexdigest()
            self._known_codes_hash = checksums, codes_hash
        return codes_hash

    def _code_vectors(self, codes: torch.LongTensor, prefix_length: int | None) -> torch.Tensor:
        self._require_code_branch()
        num_codes = self.config.num_codes
        if codes.dim() != 2 or codes.shape[1] != num_codes:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}; expected (batch, {num_codes}). To draw from fewer codes, "
                f"pass all {num_codes} and prefix_length."
            )
        if prefix_length is not None and not 1 <= prefix_length <= num_codes:
            raise ValueError(f"prefix_length is {prefix_length}; expected 1 .. {num_codes}.")
        # All codes are checked, so that a bad one is found even if the prefix leaves it out.
        return self.quantizer.code_vectors(codes)[:, :prefix_length]

    def _require_code_branch(self) -> None:
        if not self.config.use_code_branch:
            raise ValueError(
                "This checkpoint has no codebook yet (use_code_branch is false): it comes from stage I. Train stage "
                "II on it (examples/train_stage2.py), or load a finished image tokenizer."
            )

    def _require_text_branch(self) -> None:
        if not self.config.use_text_branch:
            raise ValueError("This model was loaded without its text branch; load it with use_text_branch=True.")


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _require_one(**arguments: torch.Tensor | None) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Pass exactly one of {', '.join(arguments)}; got {', '.join(given) or 'none'}.")


def _build_vision_model(config: PreTrainedConfig) -> PreTrainedModel:
    # BLIP-2's ViT is a public model of transformers that AutoModel does not list.
    model_class = Blip2VisionModel if isinstance(config, Blip2VisionConfig) else MODEL_MAPPING[type(config)]
    if config._attn_implementation == "sdpa" and not model_class._supports_sdpa:
        # Asked for by name, sdpa would be refused for a vision model without attention, such as EfficientNet.
        config._attn_implementation = "eager"
    return model_class._from_config(config)


__all__ = ["SeedModel", "SeedOutput", "SeedPreTrainedModel"]
