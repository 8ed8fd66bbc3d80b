"""The portfolio: backbones of different kind and cost that a run tries where none is named.

`--backbones auto` searches it, and so does a space whose backbones are exactly these. The
linear-probe stage ranks them; those that are behind leave the search.
"""

from __future__ import annotations

PORTFOLIO: dict[str, str] = {
    "squeezenet1_0": "the smallest file, and features of another kind than all others",
    "mobilenet_v2": "3.5 million weights, fast on every CPU",
    "mobilenet_v3_large": "as fast, with squeeze-and-excitation and better training",
    "resnet18": "the plain residual network that most studies begin with",
    "efficientnet_b0": "the best of the small convolutional networks",
    "regnet_y_400mf": "a small network of another search, fast to fine-tune",
    "resnet50": "the common backbone of 25 million weights, trained as networks are today",
    "convnext_tiny": "a modern convolutional network, strong when it is frozen",
    "swin_t": "a transformer of windows, strong when it is fine-tuned",
}
"""By name, why it is in the portfolio; the cheapest first."""
