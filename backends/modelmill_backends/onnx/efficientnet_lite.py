"""EfficientNet-Lite0 in PyTorch. The export needs it once, because the published weights are a state dict.

Architecture: Tan & Le 2019, in the "Lite" variant (ReLU6 instead of swish, no squeeze-and-excite). The
attribute names are the weight file's keys. The weights were trained in TensorFlow, so the padding is its
"SAME": an odd row of zeros goes to the bottom and right.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelmill_backends.onnx.export_process import Exportable

IMAGE_SIZE = 224
CLASSES = 1000
BN_EPS = 1e-3
STEM, HEAD = 32, 1280

# (repeats, expansion, channels, stride, kernel) of each stage.
STAGES = (
    (1, 1, 16, 1, 3),
    (2, 6, 24, 2, 3),
    (2, 6, 40, 2, 5),
    (3, 6, 80, 2, 3),
    (3, 6, 112, 1, 5),
    (4, 6, 192, 2, 5),
    (1, 6, 320, 1, 3),
)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after one axis of ``size`` so that the output has ``ceil(size / stride)``."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def build_network() -> Any:
    """The network with untrained weights, in eval mode: ``[n, 3, 224, 224]`` → logits ``[n, 1000]``."""
    import torch
    from torch import nn

    block_class = _block_class()

    class EfficientNetLite0(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem = _convolution(3, STEM, IMAGE_SIZE, 3, stride=2)
            self._bn0 = nn.BatchNorm2d(STEM, eps=BN_EPS)
            blocks, channels, size = [], STEM, IMAGE_SIZE // 2
            for repeats, expand, outputs, first_stride, kernel in STAGES:
                for index in range(repeats):
                    stride = first_stride if index == 0 else 1
                    blocks.append(block_class(channels, outputs, size, expand, stride, kernel))
                    channels, size = outputs, -(-size // stride)
            self._blocks = nn.ModuleList(blocks)
            self._conv_head = _convolution(channels, HEAD, size, 1)
            self._bn1 = nn.BatchNorm2d(HEAD, eps=BN_EPS)
            self._fc = nn.Linear(HEAD, CLASSES)

        def features(self, x: torch.Tensor) -> Any:
            """The input of the last layer: ``[n, 1280]``."""
            x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
            for block in self._blocks:
                x = block(x)
            x = nn.functional.relu6(self._bn1(self._conv_head(x)))
            return x.mean((2, 3))

        def forward(self, x: torch.Tensor) -> Any:
            return self._fc(self.features(x))

    return EfficientNetLite0().eval()


def load_network(weights: Path) -> Any:
    """The network with the weights of a ``.pth`` state dict. From the pickle, only tensors are read."""
    import torch

    network = build_network()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network


def to_export(weights: Path) -> Exportable:
    """For ``modelmill_backends.onnx.export``: ``pixels`` → ``logits`` and ``features``.

    ``pixels`` is ``[n, 3, 224, 224]``, ``logits`` is ``[n, 1000]``. ``features``, ``[n, 1280]``, is the input
    of the last layer, which makes the logits.
    """
    import torch
    from torch import nn

    from modelmill_backends.onnx.export_process import Exportable

    network = load_network(weights)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> Any:
            features = self.network.features(x)
            return self.network._fc(features), features

    return Exportable(
        network=Both().eval(),
        inputs={"pixels": torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)},
        check={"pixels": torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE)},
        outputs=["logits", "features"],
        dynamic_axes=[0],
    )


def _convolution(inputs: int, outputs: int, size: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
    from torch import nn

    before, after = same_padding(size, kernel, stride)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    if before == after:
        conv.padding = (before, before)
    else:
        # A hook, because a layer would change the names of the weights.
        conv.register_forward_pre_hook(
            lambda _, args: (nn.functional.pad(args[0], (before, after, before, after)),)
        )
    return conv


def _block_class() -> Any:
    # The class is made in a function, because importing this module must not import torch.
    import torch
    from torch import nn

    class Block(nn.Module):
        """An inverted residual: expand, convolve each channel separately, project."""

        def __init__(
            self, inputs: int, outputs: int, size: int, expand: int, stride: int, kernel: int
        ) -> None:
            super().__init__()
            inner = inputs * expand
            self._expands = expand != 1
            self._adds = stride == 1 and inputs == outputs
            if self._expands:
                self._expand_conv = _convolution(inputs, inner, size, 1)
                self._bn0 = nn.BatchNorm2d(inner, eps=BN_EPS)
            self._depthwise_conv = _convolution(inner, inner, size, kernel, stride, groups=inner)
            self._bn1 = nn.BatchNorm2d(inner, eps=BN_EPS)
            self._project_conv = _convolution(inner, outputs, -(-size // stride), 1)
            self._bn2 = nn.BatchNorm2d(outputs, eps=BN_EPS)

        def forward(self, x: torch.Tensor) -> Any:
            y = x
            if self._expands:
                y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
            y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
            y = self._bn2(self._project_conv(y))
            return x + y if self._adds else y

    return Block
