"""The Q-Formers of SEED: learned queries that read visual features, and a text side that shares their attention."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import OutputRecorder

from .configuration_seed import SeedQFormerConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention step by step, for `attn_implementation="eager"` and to return the weights."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class SeedAttention(nn.Module):
    """
    Multi-head attention through transformers' attention interface.

    Args:
        config: the configuration that names the attention implementation; nothing else of it is read.
        hidden_size: width of the queries and of the output.
        encoder_hidden_size: width of the states that keys and values are made of (another sequence's in
            cross-attention).
    """

    def __init__(self, config, hidden_size: int, num_heads: int, encoder_hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(encoder_hidden_size, hidden_size)
        self.v_proj = nn.Linear(encoder_hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = self._split_heads(self.q_proj(hidden_states))
        key = self._split_heads(self.k_proj(source))
        value = self._split_heads(self.v_proj(source))
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=is_causal,
        )
        return self.out_proj(output.flatten(2)), weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)


class SeedMLP(nn.Module):
    """The two-layer feed-forward network of a transformer block."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str = "gelu"):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.act = ACT2FN[hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class SeedQFormerLayer(GradientCheckpointingLayer):
    """
    A post-norm BERT layer. Queries and words share the self-attention. Each has its own feed-forward network, and only
    the queries have cross-attention (BLIP-2, section 3.1).
    """

    def __init__(
        self, config: SeedQFormerConfig, encoder_hidden_size: int, has_cross_attention: bool, has_text_branch: bool
    ):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        heads, dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.self_attn = SeedAttention(config, width, heads, width, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.has_cross_attention = has_cross_attention
        if has_cross_attention:
            self.cross_attn = SeedAttention(config, width, heads, encoder_hidden_size, dropout)
            self.cross_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.query_mlp = SeedMLP(width, config.intermediate_size, config.hidden_act)
        self.query_mlp_layer_norm = nn.LayerNorm(width, eps=eps)
        if has_text_branch:
            self.text_mlp = SeedMLP(width, config.intermediate_size, config.hidden_act)
            self.text_mlp_layer_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_queries: int,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states, attention_mask=attention_mask, is_causal=is_causal)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        queries, words = hidden_states[:, :num_queries], hidden_states[:, num_queries:]
        outputs = []
        if queries.shape[1]:
            if self.has_cross_attention:
                read, _ = self.cross_attn(queries, encoder_hidden_states, attention_mask=encoder_attention_mask)
                queries = self.cross_attn_layer_norm(queries + self.dropout(read))
            outputs.append(self.query_mlp_layer_norm(queries + self.dropout(self.query_mlp(queries))))
        if words.shape[1]:
            outputs.append(self.text_mlp_layer_norm(words + self.dropout(self.text_mlp(words))))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


class SeedQFormer(PreTrainedModel):
    """
    A Q-Former. It runs queries that read `encoder_hidden_states`, words, or both.

    What a position sees in self-attention (paper, section 3.1; masks of the released code):
    - Queries without words: a query sees itself and earlier queries if `config.causal` is set, else every query.
    - Words without queries: a word sees every word.
    - Both: queries see each other as they do without words; everything else is visible.
    - Both with `causal_text` (captioning): queries see no word; a word sees every query and the words up to itself.
    Cross-attention is unmasked unless `encoder_attention_mask` is given.

    Args:
        encoder_hidden_size: width of the states that the queries read.
        has_text_branch: True adds word embeddings and the words' feed-forward layers.
    """

    config: SeedQFormerConfig
    config_class = SeedQFormerConfig
    base_model_prefix = "qformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["SeedQFormerLayer"]
    # They record the Causal Q-Former, from whose last hidden state the codes are made, and not the Reverse Q-Former.
    _can_record_outputs = {
        "hidden_states": OutputRecorder(SeedQFormerLayer, layer_name="qformer.layers"),
        "attentions": OutputRecorder(None, index=1, layer_name="qformer.layers", class_name="self_attn"),
    }

    def __init__(self, config: SeedQFormerConfig, encoder_hidden_size: int, has_text_branch: bool = False):
        super().__init__(config)
        width = config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_queries, width))
        if has_text_branch:
            self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            SeedQFormerLayer(config, encoder_hidden_size, i % config.cross_attention_frequency == 0, has_text_branch)
            for i in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.query_tokens, std=self.config.initializer_range)

    def forward(
        self,
        encoder_hidden_states: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        causal_text: bool = False,
    ) -> torch.Tensor:
        """
        Return the hidden states of queries and words, in this order. At least one of the two is given.

        Args:
            encoder_hidden_states: `(batch, positions, encoder_hidden_size)`, what the queries read; None runs the words
                without queries.
            input_ids: `(batch, length)`; None runs the queries without words.
            attention_mask: `(batch, length)`, 1 for words, 0 for padding.
            encoder_attention_mask: `(batch, positions)`, 1 where a position may be read.
            causal_text: words see themselves and earlier words only, and queries see no word.

        Returns:
            `(batch, num_queries + length, hidden_size)`, without the part that was not given.
        """
        num_queries = 0 if encoder_hidden_states is None else self.config.num_queries
        batch = len(input_ids) if encoder_hidden_states is None else len(encoder_hidden_states)
        parts = []
        if num_queries:
            parts.append(self.query_tokens.expand(batch, -1, -1))
        if input_ids is not None:
            parts.append(self._embed_words(input_ids))
        hidden_states = self.dropout(self.layernorm(torch.cat(parts, dim=1)))

        causal_queries = self.config.causal and num_queries > 0
        # Queries alone need no mask tensor: the kernels know the causal pattern. Eager and flex do not.
        is_causal = causal_queries and input_ids is None and self.config._attn_implementation == "sdpa"
        mask = None
        if not is_causal:
            mask = self._self_attention_mask(hidden_states, num_queries, attention_mask, causal_text)
        if encoder_attention_mask is not None:
            encoder_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states[:, :num_queries],
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                num_queries,
                encoder_hidden_states,  # reentrant checkpointing finds gradients of positional arguments only
                attention_mask=mask,
                encoder_attention_mask=encoder_attention_mask,
                is_causal=is_causal,
            )
        return hidden_states

    def _embed_words(self, input_ids: torch.LongTensor) -> torch.Tensor:
        length = input_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"Got texts of {length} tokens; this text branch reads at most "
                f"{self.config.max_position_embeddings}. Tokenise with truncation=True."
            )
        positions = torch.arange(length, device=input_ids.device)
        return self.word_embeddings(input_ids) + self.position_embeddings(positions)

    def _self_attention_mask(
        self, hidden_states: torch.Tensor, num_queries: int, attention_mask: torch.Tensor | None, causal_text: bool
    ) -> torch.Tensor | None:
        causal_queries = self.config.causal and num_queries > 0
        if attention_mask is not None and num_queries:
            attention_mask = torch.cat([attention_mask.new_ones(len(attention_mask), num_queries), attention_mask], 1)
        visible = _visibility(num_queries, causal_queries, causal_text) if causal_queries or causal_text else None
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            and_mask_function=visible,
        )


def _visibility(num_queries: int, causal_queries: bool, causal_text: bool) -> Callable:
    """Return which position sees which, as a mask function of transformers (queries come before words)."""

    def visible(batch_idx, head_idx, q_idx, kv_idx):
        both_queries = (q_idx < num_queries) & (kv_idx < num_queries)
        earlier = kv_idx <= q_idx
        seen = ~both_queries | earlier if causal_queries else both_queries | ~both_queries
        if causal_text:
            # Queries come first, so "earlier" lets a word see every query and hides every word from the queries.
            seen = seen & (both_queries | earlier)
        return seen

    return visible


__all__ = ["SeedAttention", "SeedMLP", "SeedQFormer", "SeedQFormerLayer", "eager_attention_forward"]
