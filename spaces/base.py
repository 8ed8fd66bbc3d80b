"""A space: what is searched, on which images, and for how long.

A space file is data: it defines one `SPACE = Space(...)`. Everything a user can get wrong in it is
checked here, all at once, before anything costly starts.
"""

from __future__ import annotations

import math
import runpy
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from spaces.sources import Source, did_you_mean

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
"""Every backbone that `trainables.models.backbones` can build."""

ResizeMode = Literal["pad", "crop"]
"""How an image becomes a square: see `Space.resize_mode`."""

Value = str | int | float | bool
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class TrialConfig:
    """One point of a space: all that a training needs to know besides the images.

    A parameter that a space does not name has the default given here.
    """

    backbone: str
    lr: float = 1e-3
    freeze_depth: int = 5
    """Leading stages that stay frozen, 0 (all is trained) to 5 (only the head is)."""
    dropout: float = 0.0
    augment: float = 0.0
    """Largest magnitude of augmentation, in [0, 1]."""
    weight_decay: float = 0.0
    batch_size: int = 32
    optimizer: str = "adamw"
    scheduler: str = "none"
    hidden_units: int = 0
    """Width of the dense ReLU layer in the head; 0 is a linear head."""
    label_smoothing: float = 0.0
    class_weights: bool = False
    """Weigh the loss by inverse class frequency."""
    mixup: float = 0.0
    """Alpha of the Beta distribution that mixes images (arXiv 1710.09412); 0 mixes none."""

    @classmethod
    def from_params(cls, params: Mapping[str, Value]) -> TrialConfig:
        """Build a config from the parameters of one trial."""
        return cls(**params)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Rule:
    """What values a parameter may take: one of `choices`, or a number in [low, high]."""

    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Value, ...] = ()
    integer: bool = False

    def broken_by(self, name: str, value: object) -> str | None:
        """Say how `value` breaks the rule, or None when it does not."""
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


RULES: dict[str, _Rule] = {
    "backbone": _Rule(choices=BACKBONES),
    "lr": _Rule(1e-8, 10.0),
    "freeze_depth": _Rule(0, 5, integer=True),
    "dropout": _Rule(0.0, 0.95),
    "augment": _Rule(0.0, 1.0),
    "weight_decay": _Rule(0.0, 1.0),
    "batch_size": _Rule(1, 65536, integer=True),
    "optimizer": _Rule(choices=("adam", "adamw", "sgd")),
    "scheduler": _Rule(choices=("none", "plateau", "cosine")),
    "hidden_units": _Rule(0, 65536, integer=True),
    "label_smoothing": _Rule(0.0, 0.9),
    "class_weights": _Rule(choices=(False, True)),
    "mixup": _Rule(0.0, 10.0),
}
"""The parameters a space may search or fix, with the values each may take."""


class SpaceError(ValueError):
    """A space breaks a rule. The message names every problem found."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{where} cannot be used:{lines}")

    def __reduce__(self) -> tuple[type[SpaceError], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self.args[0]).split(" cannot be used:")[0], self.problems)


@dataclass(frozen=True)
class Space:
    """What to search, on which images, and for how long.

    Raises:
        SpaceError: a rule is broken; the message names all that are.
    """

    source: Source
    params: Mapping[str, Distribution | Value]
    """A distribution is searched; anything else is a constant."""
    image_size: int = 224
    """Side in pixels of the square that a backbone sees."""
    resize_size: int | None = None
    """Side in pixels of the square that an image is kept at, of which `image_size` is the middle;
    None is `image_size / 0.875`, as torchvision's own recipes do."""
    resize_mode: ResizeMode = "pad"
    """How an image becomes a square: "pad" shows all of it, its outermost pixels going on to the
    square's edges; "crop" shows the middle, as torchvision's recipes do."""
    epochs: int = 20
    trials: int = 48
    folds: int = 5
    first_trials: tuple[Mapping[str, Value], ...] = ()
    """Configurations tried before any other; parameters left out are sampled."""
    flip: bool = True
    """Whether a mirrored image is still of its class (not so for digits)."""
    weights: Literal["pretrained", "none"] = "pretrained"
    """Where backbones start: their pretrained weights, or on purpose from scratch."""
    patience: int | None = None
    """Epochs without a better validation accuracy after which a trial ends; None never ends it."""
    val_fraction: float = 0.2
    """Share of the images outside the test split that validates the trials."""
    test_fraction: float = 0.2
    """Share of all images held out for the test, where the set has no test split of its own."""
    views: int = 8
    """Augmented views of each training image in the view bank."""
    keep_checkpoints: int = 3
    """How many of the best trials keep their weights on disk."""
    center_crop: bool = True
    """Whether the model looks at the enlarged middle of each image, too, where the folds predict
    better with it; each prediction then takes up to twice as long."""
    ablation: bool = False
    """Whether the study's ladder is climbed too, beside the search: a plain CNN, then dropout, then
    augmentation, then transfer, each trained to full length."""
    external: Source | None = field(default=None)
    """Images from elsewhere that the winner is judged on when `--external` names none."""

    def __post_init__(self) -> None:
        problems = list(_space_problems(self))
        if problems:
            raise SpaceError("The space", problems)

    @property
    def cache_size(self) -> int:
        """Side in pixels of the square that an image is kept at: `resize_size`, or its default."""
        return self.resize_size or round(self.image_size / 0.875)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The searched parameters."""
        return {k: v for k, v in self.params.items() if isinstance(v, BaseDistribution)}

    @property
    def constants(self) -> dict[str, Value]:
        """The fixed parameters."""
        return {k: v for k, v in self.params.items() if not isinstance(v, BaseDistribution)}

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones that a trial may have."""
        return tuple(str(value) for value in values_of(self.params["backbone"]))

    @property
    def freeze_depths(self) -> tuple[int, ...]:
        """The depths that trials may freeze to, ascending."""
        parameter = self.params.get("freeze_depth", TrialConfig.freeze_depth)
        if isinstance(parameter, IntDistribution):
            return tuple(range(parameter.low, parameter.high + 1, parameter.step))
        return tuple(sorted(int(value) for value in values_of(parameter)))

    def with_backbones(self, names: Sequence[str]) -> Space:
        """Return this space searching `names` instead of its own backbones.

        A first trial on another backbone keeps its recipe and takes the first of `names`.
        """
        firsts: list[Mapping[str, Value]] = []
        for first in self.first_trials:
            kept = {**first, "backbone": names[0]} if first.get("backbone") not in names else first
            if kept not in firsts:
                firsts.append(kept)
        params = {**self.params, "backbone": CategoricalDistribution(list(names))}
        return replace(self, params=params, first_trials=tuple(firsts))


def load_space(path: str | Path) -> Space:
    """Run a space file and return its `SPACE`.

    Raises:
        SpaceError: the file is missing, does not run, or its space breaks rules.
    """
    path = Path(path)
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob("*.py") if p.stem not in _NOT_SPACES)
        hint = did_you_mean(str(path), known) if known else ""
        manifest = f"; {path.parent}/ has {', '.join(Path(p).name for p in known)}" if known else ""
        raise SpaceError(f"Space file {path}", [f"there is no such file{hint}{manifest}"])
    try:
        names = runpy.run_path(str(path))
    except SpaceError as error:
        raise SpaceError(f"Space file {path}", error.problems) from None
    except SyntaxError as error:
        what = f"line {error.lineno}" if error.lineno else "the file"  # null bytes have no line
        raise SpaceError(f"Space file {path}", [f"{what} is not Python: {error.msg}"]) from None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = f"line {frames[-1].lineno}: " if frames else ""
        raise SpaceError(f"Space file {path}", [f"{line}{type(error).__name__}: {error}"]) from None
    space = names.get("SPACE")
    if not isinstance(space, Space):
        found = "defines none" if space is None else f"has a {type(space).__name__} there"
        raise SpaceError(f"Space file {path}", [f"it must define SPACE = Space(...), but {found}"])
    return space


_NOT_SPACES = {"__init__", "base", "sources", "glyphs"}


def _bound(value: float) -> str:
    return f"{value:g}"


def values_of(parameter: Distribution | Value) -> tuple[Value, ...]:
    """Return the values that bound a parameter: all choices, both ends of a range, or itself."""
    if isinstance(parameter, CategoricalDistribution):
        return tuple(parameter.choices)  # type: ignore[arg-type]
    if isinstance(parameter, FloatDistribution | IntDistribution):
        return (parameter.low, parameter.high)
    return (parameter,)


def _space_problems(space: Space) -> Iterable[str]:
    if not isinstance(space.source, Source):
        yield f"source must come from spaces.sources, but got {space.source!r}"  # type: ignore[unreachable]
    if "backbone" not in space.params:
        yield "params must name a 'backbone'"
    for name, parameter in space.params.items():
        if name not in RULES:
            yield (
                f"unknown parameter {name!r}{did_you_mean(name, RULES)} (known: {', '.join(RULES)})"
            )
            continue
        broken = [RULES[name].broken_by(name, value) for value in values_of(parameter)]
        yield from dict.fromkeys(problem for problem in broken if problem)
    for index, first in enumerate(space.first_trials):
        yield from (f"first_trials[{index}]: {p}" for p in _first_trial_problems(space, first))
    yield from _number_problems(space)


def _first_trial_problems(space: Space, first: Mapping[str, Value]) -> Iterable[str]:
    for name, value in first.items():
        parameter = space.params.get(name)
        if parameter is None:
            hint = did_you_mean(name, space.params)
            yield f"{name!r} is not a parameter of this space{hint}"
        elif isinstance(parameter, BaseDistribution):
            try:
                inside = parameter._contains(parameter.to_internal_repr(value))  # type: ignore[arg-type]
            except (TypeError, ValueError):
                inside = False
            if not inside:
                yield f"{name} = {value!r} is outside {parameter}"
        elif value != parameter:
            yield f"{name} = {value!r}, but the space fixes it at {parameter!r}"


def _number_problems(space: Space) -> Iterable[str]:
    """Check the plain numbers of a space: (field, lowest, highest)."""
    bounds: tuple[tuple[str, float, float], ...] = (
        ("image_size", 16, 1024),
        ("epochs", 1, 10_000),
        ("trials", 1, 1_000_000),
        ("folds", 2, 100),
        ("views", 1, 256),
        ("keep_checkpoints", 1, 1_000_000),
    )
    for name, low, high in bounds:
        problem = _Rule(low, high, integer=True).broken_by(name, getattr(space, name))
        if problem:
            yield problem
    for name in ("val_fraction", "test_fraction"):
        value = getattr(space, name)
        if not 0.05 <= value <= 0.5:
            yield f"0.05 <= {name} <= 0.5 must hold, but got {value}"
    if space.resize_size is not None and space.resize_size < space.image_size:
        yield (
            f"resize_size >= image_size must hold, but got {space.resize_size} < {space.image_size}"
        )
    if space.resize_mode not in get_args(ResizeMode):
        yield f"resize_mode must be 'pad' or 'crop', but got {space.resize_mode!r}"
    if space.patience is not None and space.patience < 1:
        yield f"patience >= 1 must hold, but got {space.patience}"
    for name in ("center_crop", "ablation"):
        value = getattr(space, name)
        if not isinstance(value, bool):
            yield f"{name} must be True or False, but got {value!r}"
    if space.weights not in ("pretrained", "none"):
        yield f"weights must be 'pretrained' or 'none', but got {space.weights!r}"
