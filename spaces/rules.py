"""The rules of a space: its parameters, and the values that each may have."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from spaces.errors import SearchError
from spaces.sources import did_you_mean
from spaces.timm_names import PREFIX, timm_names, timm_problem

BACKBONES: tuple[str, ...] = (
    "tinynet",
    "cnn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_v2_s",
    "convnext_tiny",
    "squeezenet1_0",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "densenet121",
    "vgg16_bn",
    "regnet_y_400mf",
    "vit_b_16",
    "swin_t",
)
"""The networks of torchvision and of this package that can be backbones, beside all of timm's."""

BACKBONE_NAMES = (
    f"{', '.join(BACKBONES)}, timm/NAME of any network of timm, or module:function of your own"
)
"""What a backbone may be called, for errors."""

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

ResizeMode = Literal["pad", "crop"]
"""How an image is made square; see `Space.resize_mode`."""

MAX_RESIZE_SIZE = 4096
"""Side in pixels of the squares that images are resized to, at most."""

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc"]
"""What models are compared by; see `Space.metric` and `trainables.metrics`."""

Value = str | int | float | bool
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Rule:
    """The values that a parameter may have: one of `choices`, or a number in [low, high]."""

    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Value, ...] = ()
    integer: bool = False

    def broken_by(self, name: str, value: object) -> str | None:
        """Return how `value` breaks the rule; None if it does not."""
        if self.choices:
            if value in self.choices and isinstance(value, type(self.choices[0])):
                return None
            hint = did_you_mean(str(value), [str(choice) for choice in self.choices])
            choices = ", ".join(map(str, self.choices))
            return f"{name} must be one of {choices}, but got {value!r}{hint}"
        rule = f"{_bound(self.low)} <= {name} <= {_bound(self.high)} must hold"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{rule}, but got {value!r}"
        if self.integer and not isinstance(value, int):
            return f"{name} must be a whole number, but got {value!r}"
        if not self.low <= value <= self.high:
            return f"{rule}, but got {value}"
        return None

    def parse(self, name: str, text: str) -> Value:
        """Read a value that is written as text, as on a command line.

        Raises:
            ValueError: it breaks the rule; the message says how.
        """
        value: Value = text
        if self.choices:
            by_text = {str(choice).casefold(): choice for choice in self.choices}
            value = by_text.get(text.casefold(), text)
        else:
            for kind in (int, float) if self.integer else (float,):
                with suppress(ValueError):
                    value = kind(text)
                    break
        if problem := self.broken_by(name, value):
            raise ValueError(problem)
        return value


@dataclass(frozen=True)
class BackboneRule(Rule):
    """The names of backbones: one of `choices`, a network of timm, or a function of the user."""

    def broken_by(self, name: str, value: object) -> str | None:
        """Return how `value` breaks the rule; None if it does not."""
        if not isinstance(value, str):
            return f"{name} must be a name, but got {value!r}"
        problem = backbone_problem(value)
        if problem is None or value.startswith(PREFIX):
            return problem
        return f"{name} must be one of {BACKBONE_NAMES}, but got {value!r}{_similar(value)}"


def backbone_problem(name: str) -> str | None:
    """Return why there is no such backbone, with similar names; None if there is."""
    if name in BACKBONES or is_own_network(name):
        return None
    if name.startswith(PREFIX):
        return timm_problem(name)
    return f"there is no backbone {name!r}{_similar(name)}"


def _similar(name: str) -> str:
    if name in timm_names():
        return f"; did you mean {PREFIX + name!r}?"
    return did_you_mean(name, BACKBONES)


def is_own_network(backbone: str) -> bool:
    """Return whether a backbone is a function of the user's own, `module:function`."""
    return _FUNCTION.fullmatch(backbone) is not None


RULES: dict[str, Rule] = {
    "backbone": BackboneRule(choices=BACKBONES),
    "lr": Rule(1e-8, 10.0),
    "freeze_depth": Rule(0, 5, integer=True),
    "dropout": Rule(0.0, 0.95),
    "augment": Rule(0.0, 1.0),
    "weight_decay": Rule(0.0, 1.0),
    "batch_size": Rule(1, 65536, integer=True),
    "optimizer": Rule(choices=("adam", "adamw", "sgd")),
    "scheduler": Rule(choices=("none", "plateau", "cosine")),
    "hidden_units": Rule(0, 65536, integer=True),
    "label_smoothing": Rule(0.0, 0.9),
    "class_weights": Rule(choices=(False, True)),
    "mixup": Rule(0.0, 10.0),
    "batch_norm": Rule(choices=("trained", "frozen")),
}
"""The parameters that a space may search or fix, with the values that each may have."""


class SpaceError(SearchError):
    """A space breaks rules; the message names all of them."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{where} cannot be used:{lines}")

    def __reduce__(self) -> tuple[type[SpaceError], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self.args[0]).split(" cannot be used:")[0], self.problems)


def _bound(value: float) -> str:
    return f"{value:g}"
