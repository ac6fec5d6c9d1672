"""The models and losses of `train_encoder.py`: an EfficientNet, a text branch, and what brings them together."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from transformers import EfficientNetModel

from seed.configuration_seed import SeedQFormerConfig
from seed.files_seed import write_json
from seed.losses_seed import contrastive_loss, contrastive_targets
from seed.modeling_seed_qformer import SeedQFormer

from .recipe import EncoderRecipe

# In transformers' EfficientNet: each convolution and the batch norm that follows it.
_NORM_OF = {
    "convolution": "batchnorm",
    "expand_conv": "expand_bn",
    "depthwise_conv": "depthwise_norm",
    "project_conv": "project_bn",
    "top_conv": "top_bn",
}
INITIAL_TEMPERATURE, MIN_TEMPERATURE = 0.07, 0.01
# Parts of a Q-Former that only its queries use; the rest is the text branch.
_QUERY_PARTS = ("query_tokens", ".cross_attn", ".query_mlp")


class FoldedEncoder(nn.Module):
    """
    An EfficientNet in evaluation mode, computed with its batch norms folded into its convolutions at every step.

    The result and the gradients of all weights are those of the model itself, up to rounding; one pass over the
    activations for each layer less makes a step on a CPU a third shorter. Silenced squeeze-and-excite layers (see
    seed/evaluation/efficientnet_lite.py) multiply by one; they are left out of the computation and keep their weights.

    Args:
        encoder: is trained in place, and is what to save.

    Raises:
        ValueError: its squeeze-and-excite layers are not silenced.
    """

    def __init__(self, encoder: EfficientNetModel):
        super().__init__()
        self.encoder = encoder.eval()
        for block in encoder.encoder.blocks:
            gate = block.squeeze_excite
            if gate.expand.weight.any() or (gate.expand.bias < 20).any():
                raise ValueError(
                    "This EfficientNet has squeeze-and-excite layers of its own; only EfficientNet-Lite is supported."
                )
            gate.requires_grad_(False)
        skeleton = copy.deepcopy(encoder)
        for name, convolution, _ in _normed_convolutions(skeleton):
            convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels))
            owner, _, last = name.rpartition(".")
            setattr(skeleton.get_submodule(owner), _NORM_OF[last], nn.Identity())
        for block in skeleton.encoder.blocks:
            block.squeeze_excite = nn.Identity()
        for module in list(skeleton.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU6):
                    setattr(module, name, nn.ReLU6(inplace=True))
        # In a list, so that it counts neither among the weights nor in the state. All of its weights are given at each
        # call, wherever they lie.
        self._skeleton = [skeleton]

    def train(self, mode: bool = True) -> "FoldedEncoder":
        """Keep the encoder in evaluation mode, as a frozen one will be used: no dropout, no statistics of batches."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return pooled features `(batch, channels)` of pixels `(batch, 3, height, width)`."""
        weights = {}
        for name, convolution, norm in _normed_convolutions(self.encoder):
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            weights[f"{name}.weight"] = convolution.weight * scale[:, None, None, None]
            weights[f"{name}.bias"] = norm.bias - norm.running_mean * scale
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return pooled_features(functional_call(self._skeleton[0], weights, (pixel_values,)))


def _normed_convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    for owner, module in model.named_modules():
        for name, norm in _NORM_OF.items():
            convolution = getattr(module, name, None)
            if isinstance(convolution, nn.Conv2d):
                yield f"{owner}.{name}", convolution, getattr(module, norm)


def pooled_features(output) -> torch.Tensor:
    """Return the mean over the positions of an encoder's `last_hidden_state`, `(batch, channels)`."""
    return output.last_hidden_state.flatten(2).mean(dim=2)


class ContrastiveEncoder(nn.Module):
    """
    The image encoder and the text branch of a Q-Former, each projected into one contrastive space.

    The text branch has the names and the shapes that it has in `SeedModel`, so that the Q-Former goes on from it.

    Args:
        encoder: EfficientNet-Lite.
        recipe: sizes of the text branch, and the losses.
        vocab_size: entries of the text branch's tokenizer.
    """

    def __init__(self, encoder: EfficientNetModel, recipe: EncoderRecipe, vocab_size: int):
        super().__init__()
        self.recipe = recipe
        config = SeedQFormerConfig(**recipe.qformer_config | {"vocab_size": vocab_size})
        self.vision = FoldedEncoder(encoder)
        self.qformer = SeedQFormer(config, encoder.config.hidden_dim, has_text_branch=True)
        self.text_projection = nn.Linear(config.hidden_size, recipe.projection_dim)
        self.image_projection = nn.Linear(encoder.config.hidden_dim, recipe.projection_dim)
        self.temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))
        for name, parameter in self.qformer.named_parameters():
            parameter.requires_grad_(not any(part in f".{name}" for part in _QUERY_PARTS))

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        groups: torch.LongTensor,
    ) -> dict[str, torch.Tensor]:
        """
        Return the loss and its terms.

        Args:
            pixel_values: `(batch, 3, height, width)`.
            input_ids, attention_mask: `(batch, length)`, a caption for each picture.
            groups: `(batch,)`; pictures of one concept share a number.
        """
        images = nn.functional.normalize(self.image_projection(self.vision(pixel_values)).float(), dim=-1)
        words = self.qformer(input_ids=input_ids, attention_mask=attention_mask)
        texts = nn.functional.normalize(self.text_projection(words[:, 0]).float(), dim=-1)
        targets = contrastive_targets(groups, groups)
        temperature = self.temperature + (self.temperature.clamp(min=MIN_TEMPERATURE) - self.temperature).detach()
        contrastive = contrastive_loss(
            images, texts, images, texts, temperature, targets, targets, label_smoothing=self.recipe.label_smoothing
        )
        style = style_loss(images, groups, self.recipe.style_temperature)
        with torch.no_grad():
            recall = (groups[(images @ texts.t()).argmax(dim=1)] == groups).float().mean()
        return {
            "loss": contrastive + self.recipe.style_weight * style,
            "contrastive": contrastive.detach(),
            "style": style.detach(),
            "recall": recall,
            "temperature": temperature.detach(),
        }


def style_loss(features: torch.Tensor, groups: torch.LongTensor, temperature: float) -> torch.Tensor:
    """
    Supervised contrastive loss between the pictures of a concept (Khosla et al., 2020, eq. 2).

    Args:
        features: `(batch, dim)`, L2-normalised.
        groups: `(batch,)`; every number stands at two pictures at least.
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logits = (features @ features.t() / temperature).masked_fill(itself, -math.inf)
    positive = (groups[:, None] == groups[None, :]) & ~itself
    log_probability = logits.log_softmax(dim=1).masked_fill(~positive, 0.0)
    return -(log_probability.sum(dim=1) / positive.sum(dim=1)).mean()


def parameter_groups(model: ContrastiveEncoder, recipe: EncoderRecipe) -> list[dict]:
    """Return AdamW's groups: the encoder and the rest at their own rates; vectors and scalars do not decay."""
    groups = []
    for part, rate in ((True, recipe.encoder_learning_rate), (False, recipe.head_learning_rate)):
        mine = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith("vision.") == part
        ]
        for decays in (True, False):
            parameters = [parameter for parameter in mine if (parameter.dim() > 1) == decays]
            decay = recipe.weight_decay if decays else 0.0
            groups.append({"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return groups


def save_text_branch(model: ContrastiveEncoder, folder: Path) -> None:
    """
    Save the text branch under the names that its tensors have in `SeedModel`, and its sizes.

    `model.safetensors` holds `qformer.*` without the queries' parts, and `text_projection.*`; `config.json` holds
    `qformer_config` and `projection_dim` as a stage's recipe has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"qformer.{name}": tensor
        for name, tensor in model.qformer.state_dict().items()
        if not any(part in f".{name}" for part in _QUERY_PARTS)
    }
    tensors |= {f"text_projection.{name}": tensor for name, tensor in model.text_projection.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = model.recipe.qformer_config | {"vocab_size": model.qformer.config.vocab_size}
    write_json(folder / "config.json", {"qformer_config": settings, "projection_dim": model.recipe.projection_dim})


__all__ = [
    "ContrastiveEncoder",
    "FoldedEncoder",
    "parameter_groups",
    "pooled_features",
    "save_text_branch",
    "style_loss",
]
