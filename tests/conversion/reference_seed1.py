"""
SEED-1 once more, independent of `seed`: plain torch, the released files' tensor names, additive -10000 masks.

It makes small random checkpoints in the released formats and computes every stage, for `test_seed1.py` to compare.
"""

import torch
from torch import nn
from torch.nn.functional import gelu, normalize


class Block(nn.Module):
    """A pre-norm ViT block, in EVA's variant (query and value bias only) or timm's (one qkv bias)."""

    class Attention(nn.Module):
        def __init__(self, width, heads, eva):
            super().__init__()
            self.heads = heads
            self.qkv = nn.Linear(width, 3 * width, bias=not eva)
            if eva:
                self.q_bias = nn.Parameter(torch.zeros(width))
                self.v_bias = nn.Parameter(torch.zeros(width))
            self.proj = nn.Linear(width, width)

        def forward(self, x):
            qkv = self.qkv(x)
            if hasattr(self, "q_bias"):
                qkv = qkv + torch.cat([self.q_bias, 0 * self.q_bias, self.v_bias])
            batch, length, width = x.shape
            query, key, value = qkv.reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            scores = (query * (width // self.heads) ** -0.5) @ key.transpose(-1, -2)
            return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width))

    class Mlp(nn.Module):
        def __init__(self, width, hidden):
            super().__init__()
            self.fc1 = nn.Linear(width, hidden)
            self.fc2 = nn.Linear(hidden, width)

        def forward(self, x):
            return self.fc2(gelu(self.fc1(x)))

    def __init__(self, width, heads, hidden, eva):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = self.Attention(width, heads, eva)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = self.Mlp(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, width=64, heads=4, hidden=110, depth=3, image_size=42, patch_size=14):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // patch_size) ** 2 + 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch_size, patch_size)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, eva=True) for _ in range(depth))

    def forward(self, pixel_values):
        patches = self.patch_embed.proj(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class Attention(nn.Module):
    """BERT's attention with its output layer, post-norm."""

    def __init__(self, width, source_width, heads):
        super().__init__()
        self.heads = heads
        self.self = nn.Module()
        self.self.query = nn.Linear(width, width)
        self.self.key = nn.Linear(source_width, width)
        self.self.value = nn.Linear(source_width, width)
        self.output = Output(width, width)

    def forward(self, x, source=None, mask=None):
        source = x if source is None else source

        def split(t):
            return t.reshape(len(t), t.shape[1], self.heads, -1).transpose(1, 2)

        query, key, value = split(self.self.query(x)), split(self.self.key(source)), split(self.self.value(source))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores + mask
        return self.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2), x)


class Output(nn.Module):
    def __init__(self, inner, width):
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dense(hidden) + residual)


class Intermediate(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x):
        return gelu(self.dense(x))


class BertLayer(nn.Module):
    def __init__(self, width, source_width, heads, inner, cross, text):
        super().__init__()
        self.attention = Attention(width, width, heads)
        if cross:
            self.crossattention = Attention(width, source_width, heads)
        if text:
            self.intermediate = Intermediate(width, inner)
            self.output = Output(inner, width)
        self.intermediate_query = Intermediate(width, inner)
        self.output_query = Output(inner, width)

    def forward(self, x, num_queries, source, mask):
        x = self.attention(x, mask=mask)
        queries, words = x[:, :num_queries], x[:, num_queries:]
        if num_queries:
            if hasattr(self, "crossattention"):
                queries = self.crossattention(queries, source)
            queries = self.output_query(self.intermediate_query(queries), queries)
        if words.shape[1]:
            words = self.output(self.intermediate(words), words)
        return torch.cat([queries, words], dim=1)


class Bert(nn.Module):
    def __init__(self, width, source_width, heads, inner, layers, vocab=None, positions=40, frequency=2):
        super().__init__()
        self.bert = nn.Module()
        self.bert.embeddings = nn.Module()
        self.bert.embeddings.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.bert.embeddings.register_buffer("position_ids", torch.arange(positions)[None])
        if vocab:
            self.bert.embeddings.word_embeddings = nn.Embedding(vocab, width)
            self.bert.embeddings.position_embeddings = nn.Embedding(positions, width)
            self.cls = nn.Module()
            self.cls.predictions = nn.Module()
            self.cls.predictions.decoder = nn.Linear(width, vocab)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(
            BertLayer(width, source_width, heads, inner, i % frequency == 0, bool(vocab)) for i in range(layers)
        )

    def forward(self, queries=None, source=None, input_ids=None, text_mask=None):
        parts, num_queries = [], 0
        if queries is not None:
            num_queries = queries.shape[1]
            parts.append(queries.expand(len(source), -1, -1))
        if input_ids is not None:
            embeddings = self.bert.embeddings
            parts.append(
                embeddings.word_embeddings(input_ids) + embeddings.position_embeddings.weight[: input_ids.shape[1]]
            )
        x = self.bert.embeddings.LayerNorm(torch.cat(parts, dim=1))
        mask = self.mask(num_queries, x.shape[0], x.shape[1], text_mask)
        for layer in self.bert.encoder.layer:
            x = layer(x, num_queries, source, mask)
        return x

    @staticmethod
    def mask(num_queries, batch, length, text_mask):
        """Additive; causal among queries exactly if there are 32, padding hidden, everything else visible."""
        visible = torch.ones(batch, length, length)
        if num_queries == 32:
            visible[:, :32, :32] = torch.ones(32, 32).tril()
        if text_mask is not None:
            visible[:, :, num_queries:] *= text_mask[:, None, :]
        return (1 - visible)[:, None] * -10000.0


class ReferenceSeed1(nn.Module):
    """Sizes differ from each other wherever they may, so that a mix-up cannot pass."""

    def __init__(
        self,
        text=True,
        vision=None,
        width=48,
        heads=4,
        inner=80,
        layers=5,
        positions=40,
        vocab=50,
        projection=20,
        decoder_heads=6,
        codebook=128,
        code_dim=8,
        generation=36,
    ):
        super().__init__()
        self.visual_encoder = VisionTransformer(**vision or {})
        vision_width = self.visual_encoder.cls_token.shape[-1]
        self.ln_vision = nn.LayerNorm(vision_width, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.zeros(1, 32, width))
        self.Qformer = Bert(width, vision_width, heads, inner, layers, vocab if text else None, positions)
        if text:
            self.vision_proj = nn.Linear(width, projection)
            self.text_proj = nn.Linear(width, projection)
            self.temp = nn.Parameter(torch.tensor(0.07))
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_dim))
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codebook, code_dim)
        self.decode_task_layer = nn.Sequential(nn.Linear(code_dim, code_dim), nn.Tanh(), nn.Linear(code_dim, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 32, width))
        self.blocks = nn.ModuleList(Block(width, decoder_heads, 4 * width, eva=False) for _ in range(4))
        self.pos_embed_text = nn.Parameter(torch.zeros(1, 32, width))
        self.blocks_text = nn.ModuleList(Block(width, decoder_heads, 4 * width, eva=False) for _ in range(4))
        self.reverse_tokens = nn.Parameter(torch.zeros(1, 77, width))
        self.Reverse_Qformer = Bert(width, width, heads, inner, layers=4)
        self.distill_text_proj = nn.Linear(width, generation)
        self.eval()

    @torch.no_grad()
    def randomize(self, seed=0, vision_scale=1.0):
        """Random everything, norms and biases too; a small `vision_scale` gives features of low variance."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "temp":
                continue
            if "norm" in name.lower() or name.startswith("ln_vision"):
                parameter.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
            elif name in ("query_tokens", "reverse_tokens"):
                parameter.copy_(noise)
            elif name == "quantize.embedding.weight":
                parameter.copy_(0.5 * noise)
            elif parameter.dim() == 2 and "embedding" not in name:
                # Sharp attention, so that queries differ from each other and a wrong mask shows.
                sharpness = 2.5 if ".query." in name or ".key." in name else 1.0
                parameter.copy_(noise * sharpness * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(0.2 * noise)
            last_of_residual = ("attn.proj.", "mlp.fc2.", "patch_embed.", "cls_token", "pos_embed")
            if name.startswith("visual_encoder.") and any(part in name for part in last_of_residual):
                parameter.mul_(vision_scale)
        return self

    @torch.no_grad()
    def stages(self, pixel_values, input_ids=None, text_mask=None):
        """Every stage of one pass, by name."""
        out = {}
        features = out["vision_features"] = self.ln_vision(self.visual_encoder(pixel_values))
        causal = out["causal_embeddings"] = self.Qformer(self.query_tokens, features)
        encoded = out["encoded"] = self.encode_task_layer(causal)
        codebook = self.quantize.embedding.weight
        distances = (encoded[:, :, None] - codebook).square().sum(-1)
        codes = out["codes"] = distances.argmin(-1)
        two = distances.topk(2, dim=-1, largest=False).values
        out["margin"] = (two[..., 1] - two[..., 0]).min()
        decoded = out["decoded"] = self.decode_task_layer(codebook[codes])
        x = decoded + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out["reconstructed_causal_embeddings"] = x
        x = decoded + self.pos_embed_text
        for block in self.blocks_text:
            x = block(x)
        out["generation_embeddings"] = self.distill_text_proj(self.Reverse_Qformer(self.reverse_tokens, x))
        if input_ids is not None:
            words = self.Qformer(input_ids=input_ids, text_mask=text_mask)
            out["text_features"] = normalize(self.text_proj(words[:, 0]), dim=-1)
            out["image_features"] = normalize(self.vision_proj(causal[:, -1]), dim=-1)
            reconstructed = out["reconstructed_causal_embeddings"][:, -1]
            out["code_features"] = normalize(self.vision_proj(reconstructed), dim=-1)
            out["matching"] = self.Qformer(self.query_tokens, features, input_ids, text_mask)
        return out

    def state(self, *prefixes):
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefixes)}

    def save(self, folder, extra_blocks=0):
        """Writes the three files as released: a flat ViT, `model` levels with training state beside them."""
        prefix = "visual_encoder."
        vit = {name.removeprefix(prefix): tensor for name, tensor in self.state(prefix).items()}
        for extra in range(extra_blocks):
            number = len(self.visual_encoder.blocks) + extra
            vit |= {name.replace("blocks.0.", f"blocks.{number}."): t for name, t in vit.items() if "blocks.0." in name}
        stage1 = self.state("query_tokens", "ln_vision.", "Qformer.", "vision_proj.", "text_proj.", "temp")
        stage2 = self.state(
            "encode_task_layer.",
            "quantize.",
            "decode_task_layer.",
            "pos_embed",
            "blocks",
            "reverse_tokens",
            "Reverse_Qformer.",
            "distill_text_proj.",
        )
        training = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "scaler": None, "epoch": 9}
        paths = {
            "vit": folder / "eva_vit_g.pth",
            "causal_qformer": folder / "causal_qformer.pth",
            "seed_tokenizer": folder / "seed_tokenizer.pth",
        }
        torch.save(vit, paths["vit"])
        torch.save({"model": stage1, "config": {"run": {"seed": 42}}, **training}, paths["causal_qformer"])
        torch.save({"model": stage2, "config": {"run": {"seed": 42}}, **training}, paths["seed_tokenizer"])
        return paths
