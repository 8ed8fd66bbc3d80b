"""A space: what to search, on which images, and for how long.

A space file defines one value, `SPACE = Space(...)`. Every mistake that a user can make in it is
found when it is loaded, before anything costly starts.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from optuna.distributions import BaseDistribution, CategoricalDistribution

from spaces.conditions import ByValue, Parameter, When, branches_of, choose, join, narrow
from spaces.diagnosis import file_problems
from spaces.fields import space_problems
from spaces.first_trials import Config, expand, fit_all, of_backbones
from spaces.parameters import all_values_of, values_of
from spaces.rules import Metric, ResizeMode, SpaceError, Value
from spaces.sources import Source, did_you_mean

NOT_SPACES = frozenset(
    (
        *("__init__", "base", "rules", "fields", "diagnosis", "errors"),
        *("portfolio", "sources", "downloads", "glyphs", "timm_names"),
        *("archives", "label_tables", "conditions", "parameters", "first_trials"),
    )
)
"""Modules of this package that define no space."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class TrialConfig:
    """The hyperparameters of one trial.

    A parameter that a space does not name has the default value here.
    """

    backbone: str
    lr: float = 1e-3
    freeze_depth: int = 5
    """Number of leading stages that are frozen, from 0 (none) to 5 (only the head is trained)."""
    dropout: float = 0.0
    augment: float = 0.0
    """Largest magnitude of the augmentation, in [0, 1]: each image has one of U(0, augment)."""
    weight_decay: float = 0.0
    batch_size: int = 32
    optimizer: str = "adamw"
    scheduler: str = "none"
    hidden_units: int = 0
    """Width of the ReLU layer in the head; 0 is a linear head."""
    label_smoothing: float = 0.0
    class_weights: bool = False
    """Whether to weight the loss by inverse class frequency."""
    mixup: float = 0.0
    """Parameter α of mixup's Beta distribution (arXiv 1710.09412); 0 is no mixup."""
    batch_norm: str = "trained"
    """Whether BatchNorm statistics of trainable stages are "trained" or "frozen"."""

    @classmethod
    def from_params(cls, params: Mapping[str, Value]) -> TrialConfig:
        """Build a config from the parameters of a trial."""
        return cls(**params)  # type: ignore[arg-type]


_T = TypeVar("_T")


def _reports_all_mistakes(space: type[_T]) -> type[_T]:
    """Check all fields before a space is built: Python itself would name one unknown field alone.

    Unlike `__post_init__` this also sees the fields that do not exist, and those that are missing.
    """
    build = space.__init__

    @wraps(build)
    def checked(self: _T, *values: Any, **named: Any) -> None:
        names = [field.name for field in fields(Space)][: len(values)]
        problems = [f"{name} is given twice" for name in names if name in named]
        if len(values) > len(names):
            problems.append(f"a space has {len(names)} fields, but {len(values)} were given")
        problems += _given_problems({**dict(zip(names, values, strict=False)), **named})
        if problems:
            raise SpaceError("The space", problems)
        build(self, *values, **named)

    space.__init__ = checked  # type: ignore[method-assign, assignment]
    return space


@_reports_all_mistakes
@dataclass(frozen=True)
class Space:
    """What to search, on which images, and for how long.

    Raises:
        SpaceError: rules are broken; the message names all of them.
    """

    source: Source
    """The images."""
    params: Mapping[str, Parameter]
    """The hyperparameters: a distribution is searched, `When` and `ByValue` depend on others, and
    any other value is a constant."""
    image_size: int = 224
    """Side in pixels of the square that a backbone sees."""
    resize_size: int | None = None
    """Side in pixels of the square that images are resized to, of which the backbone sees the
    central `image_size`; None is `image_size / 0.875`, as in torchvision."""
    resize_mode: ResizeMode = "pad"
    """How an image is made square. "pad" keeps all of it: its longer side is squeezed by a factor
    of 2 at most, and its outermost pixels are repeated up to the square's edges. "crop" keeps the
    middle, as torchvision does."""
    epochs: int = 20
    """Number of epochs of a trial that is not stopped early."""
    trials: int = 48
    """Number of trials."""
    folds: int = 5
    """Number of folds that the best configurations are cross-validated in."""
    first_trials: tuple[Mapping[str, Value], ...] = ()
    """Configurations to try before all others; missing parameters are sampled. One whose backbone
    is a text with `*` is tried with every backbone that it stands for, the best first. Trial 0 is
    the baseline."""
    flip: bool = True
    """Whether augmentation may mirror images; not so if that changes their class, as of digits."""
    weights: Literal["pretrained", "none"] = "pretrained"
    """Initial weights of the backbones: pretrained, or random."""
    metric: Metric = "accuracy"
    """What models are compared by: the epochs of a trial, the trials, the finalists and the
    backbones, on images outside the test set; see `trainables.metrics`. Equal accuracies are
    ranked by their log loss."""
    patience: int | None = None
    """Number of epochs without a better validation score, by `metric`, after which a trial ends;
    None trains to full length."""
    val_fraction: float = 0.2
    """Fraction of the images outside the test set that trials are validated on."""
    test_fraction: float = 0.2
    """Fraction of the images in the test set, unless the source has a test split of its own."""
    views: int = 8
    """Number of views of each image in the feature cache: one without augmentation, the others at
    magnitudes up to 1. Trainings with frozen stages draw from them, so 1 disables augmentation."""
    keep_checkpoints: int = 3
    """Number of the best trials whose weights are kept on disk."""
    center_crop: bool = True
    """Whether the model may classify the enlarged centre of each image, too; it does if that
    improves cross-validation. A prediction then takes up to twice as long."""
    ablation: bool = False
    """Whether to train an ablation after the search: a plain CNN, then with dropout, with
    augmentation, and with transfer learning, each to full length."""
    external: Source | None = None
    """The external test set, unless `--external` names one."""

    @property
    def cache_size(self) -> int:
        """Side in pixels of the square that images are cached at: `resize_size` or its default."""
        return self.resize_size or round(self.image_size / 0.875)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The searched parameters, by name; of one that depends on others, all ranges as one."""
        ranges = {
            name: [branch for branch in branches_of(one) if isinstance(branch, BaseDistribution)]
            for name, one in self.params.items()
        }
        return {name: join(found) for name, found in ranges.items() if found}

    @property
    def constants(self) -> dict[str, Value]:
        """The parameters that are constant in every trial, by name."""
        return {name: one for name, one in self.params.items() if isinstance(one, Value)}

    @property
    def dependent(self) -> dict[str, ByValue | When]:
        """The parameters that depend on others, by name."""
        return {n: one for n, one in self.params.items() if isinstance(one, ByValue | When)}

    @property
    def parents(self) -> frozenset[str]:
        """The names of the parameters that others depend on."""
        return frozenset(name for one in self.dependent.values() for name in one.parents())

    @property
    def draw_order(self) -> tuple[str, ...]:
        """The names of all parameters, those that depend on others last."""
        return tuple(sorted(self.params, key=lambda name: name in self.dependent))

    def parameter(self, name: str, params: Mapping[str, Value]) -> BaseDistribution | Value | None:
        """Return what a parameter is in a trial: a distribution, a constant, or None: it has none.

        Args:
            name: Its name.
            params: What the trial has drawn so far, the parameters that this one depends on among
                them.
        """
        return choose(self.params[name], {**self.constants, **params})

    def complete(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Return the parameters of a trial: those that it has drawn, and its constants."""
        chosen = {name: self.parameter(name, params) for name in self.dependent}
        constants = {name: one for name, one in chosen.items() if isinstance(one, Value)}
        return {**self.constants, **constants, **params}

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones that are searched."""
        return tuple(str(value) for value in values_of(self.params["backbone"]))

    @property
    def freeze_depths(self) -> tuple[int, ...]:
        """The freeze depths that are searched, ascending."""
        values = all_values_of(self.params.get("freeze_depth", TrialConfig.freeze_depth))
        return tuple(sorted(int(value) for value in values or ()))

    @property
    def max_augment(self) -> float:
        """The largest strength of augmentation that a trial may have."""
        return max(float(value) for value in values_of(self.params.get("augment", 0.0)))

    def with_backbones(self, names: Sequence[str], preferred: str | None = None) -> Space:
        """Return a copy of this space that searches other backbones.

        A first trial with another backbone gets the preferred one, and otherwise stays the same;
        one that names none gets it as well, if there is one.

        Args:
            names: At least one.
            preferred: One of them; None is the first, for first trials that name another backbone.
        """
        of_these = of_backbones(self.first_trials, names, preferred)
        params = {**self.params, "backbone": CategoricalDistribution(list(names))}
        fitted, params = fit_all(of_these, params), narrow(params, "backbone", names)
        return replace(self, params=params, first_trials=fit_all(fitted, params))

    def without_backbones(self, names: Collection[str]) -> Space:
        """Return a copy of this space without some of its backbones; at least one must stay."""
        kept = [name for name in self.backbones if name not in names]
        return self if len(kept) == len(self.backbones) else self.with_backbones(kept)

    def with_constants(self, values: Mapping[str, Value]) -> Space:
        """Return a copy of this space with some parameters fixed, in the first trials too."""
        configs = [
            {name: values.get(name, value) for name, value in config.items()}
            for config in self.first_trials
        ]
        params = {**self.params, **values}
        fitted = fit_all(configs, params)
        for name, value in values.items():
            params = narrow(params, name, [value])
        return replace(self, params=params, first_trials=fit_all(fitted, params))

    def with_first_trials(self, ranking: Sequence[str], others: Sequence[Config] = ()) -> Space:
        """Return a copy of this space whose first trials are of one backbone each.

        Args:
            ranking: Its backbones, the best first.
            others: Configurations to try after its own.
        """
        own = expand(self.first_trials, ranking, self.params)
        return replace(self, first_trials=(*own, *(one for one in others if one not in own)))

    def with_image_size(self, image_size: int) -> Space:
        """Return a copy of this space for another image size, with the same margin around it."""
        resize_size = self.resize_size
        if resize_size is not None:
            resize_size = round(resize_size * image_size / self.image_size)
        return replace(self, image_size=image_size, resize_size=resize_size)


def shipped_spaces() -> dict[str, Path]:
    """Return the files of the spaces of this package, by name."""
    return {p.stem: p for p in sorted(_FOLDER.glob("*.py")) if p.stem not in NOT_SPACES}


def find_space(text: str) -> Path:
    """Return the file that a text names: a file's path, or the name of a space of this package.

    `products`, `products.py` and `spaces/products.py` name the same one in any folder, unless
    there is such a file in the working directory.
    """
    path = Path(os.path.expanduser(text))  # noqa: PTH111 (the other one raises an error)
    if path.is_file():
        return path
    if path.suffix in ("", ".py") and path.parent in (Path(), Path("spaces")):
        return shipped_spaces().get(path.stem, path)
    return path


def load_space(path: str | Path) -> Space:
    """Run a space file and return its `SPACE`.

    Raises:
        SpaceError: the file is missing, raises an error, or its space breaks rules.
    """
    path = Path(path)
    if not path.is_file():
        raise SpaceError(f"Space file {path}", [_missing(path)])
    try:
        names = runpy.run_path(str(path))
    except SpaceError as error:
        raise SpaceError(f"Space file {path}", error.problems) from None
    except SyntaxError as error:
        what = f"line {error.lineno}" if error.lineno else "the file"  # none for null bytes
        raise SpaceError(f"Space file {path}", [f"{what} is not Python: {error.msg}"]) from None
    except (Exception, SystemExit) as error:  # one that exits would end the command as if it ran
        problems = file_problems(path, error, _given_problems)
        raise SpaceError(f"Space file {path}", problems) from None
    space = names.get("SPACE")
    if not isinstance(space, Space):
        found = "defines none" if space is None else f"has a {type(space).__name__} there"
        raise SpaceError(f"Space file {path}", [f"it must define SPACE = Space(...), but {found}"])
    return space


def _missing(path: Path) -> str:
    """Return what to do where there is no such space file: the similar name, and all names."""
    beside = sorted(p for p in path.parent.glob("*.py") if p.stem not in NOT_SPACES)
    by_name = shipped_spaces()
    known = [*map(str, beside), *by_name, *(f"spaces/{name}.py" for name in by_name)]
    files = f"{path.parent}/ has {', '.join(p.name for p in beside)}; " if beside else ""
    return (
        f"there is no such file{did_you_mean(str(path), known)}; {files}by name, from any folder,"
        f" there are {', '.join(by_name)}"
    )


def _given_problems(given: Mapping[str, Any]) -> Iterator[str]:
    required = tuple(field.name for field in fields(Space) if field.default is MISSING)
    defaults = {f.name: f.default for f in fields(Space) if f.default is not MISSING}
    return space_problems(given, required, defaults)
