"""Two small backbones: `tinynet`, whose weights are part of the package, and `cnn`.

Both take RGB of 28 to 224 pixels and consist of five stages, the last of which
returns pooled features. `scripts/pretrain_tinynet.py` makes `weights/tinynet.pth`.
"""

from torch import Tensor, nn


class _Residual(nn.Module):
    """Adds a block's output to its input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = images + self.block(images)
        return out


def _conv_norm(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _conv_pool(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


def tinynet_stages() -> tuple[list[nn.Module], int]:
    """Build `tinynet`, a small residual network, with random weights.

    Only three of its stages halve the resolution, so that images of 28 or 32 pixels still have
    4 × 4 positions to pool. 378,000 parameters; 13 million multiplications at 32 pixels.

    Returns:
        Five stages, from images [N, 3, H, W] to features [N, 128], and the feature size 128.
    """
    stages: list[nn.Module] = [
        _conv_norm(3, 32, stride=2),
        _conv_norm(32, 48),
        nn.Sequential(_conv_norm(48, 72, stride=2), _Residual(_conv_norm(72, 72))),
        nn.Sequential(_conv_norm(72, 104, stride=2), _Residual(_conv_norm(104, 104))),
        nn.Sequential(_conv_norm(104, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ]
    return stages, 128


def cnn_stages() -> tuple[list[nn.Module], int]:
    """Build `cnn`, a plain network of convolution, ReLU and max pooling, with random weights.

    Returns:
        Five stages, from images [N, 3, H, W] to features [N, 256], and the feature size 256.
    """
    stages: list[nn.Module] = [
        _conv_pool(3, 32),
        _conv_pool(32, 64),
        _conv_pool(64, 128),
        _conv_pool(128, 128),
        nn.Sequential(
            nn.Conv2d(128, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
    ]
    for stage in stages:
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                # PyTorch's default makes activations smaller from layer to layer; without
                # normalisation, training would start slowly.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return stages, 256


SMALL_NETWORKS = {"tinynet": tinynet_stages, "cnn": cnn_stages}
"""The functions that build them, by name."""
