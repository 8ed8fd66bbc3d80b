"""Build networks by functions of the user's own, named `module:function`.

The function takes nothing and returns an `nn.Module`: with `stages`, five modules, and
`feature_size`, or without, and then it is one trunk that returns features [N, feature_size]. It may
have `mean` and `std`, by which its pixels are normalised; ImageNet's are the default.

The module is imported as Python imports modules. In a run it may be a file beside the space, whose
text every worker is given (`register_module`); `load_model` looks for no file beside a model, so
that loading one runs no code that came with it.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from spaces.errors import SearchError
from spaces.rules import is_own_network
from trainables.images import MEAN, STD
from trainables.models.network_cut import N_STAGES
from trainables.models.normalisation import Colour


class OwnNetworkError(SearchError):
    """A function of the user's own is missing, or what it returns cannot be a backbone."""


@dataclass(frozen=True)
class OwnNetwork:
    """A network of the user's own in five stages.

    Attributes:
        stages: The five stages; of a plain module, the first is all of it.
        feature_size: Number of pooled features.
        is_trunk: Whether it is a plain module.
        mean: What pixels of red, green and blue in [0, 1] are normalised by.
        std: Their standard deviation.
    """

    stages: list[nn.Module]
    feature_size: int
    is_trunk: bool
    mean: Colour
    std: Colour


def find_modules(
    backbones: Sequence[str], folders: Sequence[Path], image_size: int
) -> dict[str, str]:
    """Find the modules of networks of the user's own, and check these networks.

    Args:
        backbones: All backbones of a space.
        folders: Where the modules may be, the preferred first; one that is in none of them has to
            be installed wherever the run computes.
        image_size: Side in pixels of the images that the networks will take.

    Returns:
        By name, the source texts of the modules in the folders.

    Raises:
        OwnNetworkError: a network cannot be a backbone.
    """
    own = [backbone for backbone in backbones if is_own_network(backbone)]
    sources: dict[str, str] = {}
    for name in dict.fromkeys(backbone.partition(":")[0] for backbone in own):
        if name == "space":
            raise OwnNetworkError("the module must not be called space: a run has its own space.py")
        paths = (folder / f"{name}.py" for folder in folders)
        if path := next(filter(Path.is_file, paths), None):
            sources[name] = path.read_text(encoding="utf-8")
            register_module(name, sources[name])
    for backbone in own:
        check_own(backbone, image_size)
    return sources


_registered: dict[str, str] = {}


def register_module(name: str, source: str) -> None:
    """Make a module of its source text, unless Python has imported one of that name.

    Args:
        name: The module's name.
        source: Its text.

    Raises:
        OwnNetworkError: it raises an error while it is run.
    """
    if name in sys.modules and _registered.get(name) in (None, source):
        return
    module = ModuleType(name)
    module.__file__ = f"{name}.py"
    sys.modules[name] = module
    _registered[name] = source
    try:
        exec(compile(source, f"{name}.py", "exec"), vars(module))  # noqa: S102 - the user's own
    except BaseException as error:
        del sys.modules[name], _registered[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise OwnNetworkError(f"{name}.py: {type(error).__name__}: {error}") from error


def create_own(backbone: str, image_size: int) -> OwnNetwork:
    """Call a function of the user's own.

    Args:
        backbone: `module:function`.
        image_size: Side in pixels of the images that the network will take.

    Raises:
        OwnNetworkError: there is no such function, it fails, or it returns something else.
    """
    net = _call(backbone)
    mean, std = (_colour(net, name, default) for name, default in (("mean", MEAN), ("std", STD)))
    if not hasattr(net, "stages"):
        return OwnNetwork(
            [net, *(nn.Identity() for _ in range(N_STAGES - 1))],
            _feature_size(backbone, net, image_size),
            True,
            mean,
            std,
        )
    stages, feature_size = list(net.stages), getattr(net, "feature_size", None)  # type: ignore[arg-type]
    if len(stages) != N_STAGES or not all(isinstance(stage, nn.Module) for stage in stages):
        raise OwnNetworkError(
            f"{backbone}: its stages must be {N_STAGES} modules, but there are {len(stages)}"
        )
    if not isinstance(feature_size, int) or feature_size < 1:
        raise OwnNetworkError(
            f"{backbone}: its feature_size must be a whole number above 0, but is {feature_size!r}"
        )
    return OwnNetwork(stages, feature_size, False, mean, std)


@torch.no_grad()
def check_own(backbone: str, image_size: int) -> None:
    """Run a network of the user's own on two images.

    Raises:
        OwnNetworkError: it fails, a stage returns no tensor or changes its input, or the features
            are not [2, feature_size] and finite.
    """
    network = create_own(backbone, image_size)
    x = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    for number, stage in enumerate(network.stages, start=1):
        before, where = x.clone(), f"{backbone}, stage {number}"
        try:
            out = stage.eval()(x)
        except (Exception, SystemExit) as error:
            raise OwnNetworkError(f"{where}: {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor) or len(out) != len(before):
            raise OwnNetworkError(
                f"{where} must return one tensor [N, …], but returned {_kind(out)}"
            )
        if not torch.equal(x, before):
            raise OwnNetworkError(f"{where} must not change its input in place: outputs are cached")
        x = out
    if x.shape != (2, network.feature_size):
        raise OwnNetworkError(
            f"{backbone} must return features [N, {network.feature_size}], but returned {_kind(x)}"
        )
    if not torch.isfinite(x).all():
        raise OwnNetworkError(f"{backbone}: some of its features are infinite or NaN")


def _call(backbone: str) -> nn.Module:
    name, _, function = backbone.partition(":")
    if not is_own_network(backbone) or name.partition(".")[0] in sys.stdlib_module_names:
        raise OwnNetworkError(f"{backbone!r} must be module:function, of a module of your own")
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise OwnNetworkError(
            f"the network is built by your function {backbone}, and Python cannot import {name}"
            f" ({type(error).__name__}: {error}): start the command in the folder of {name}.py, or"
            " name that folder in the environment variable PYTHONPATH"
        ) from error
    build = vars(module).get(function)
    if not callable(build) or getattr(build, "__module__", None) != name:
        raise OwnNetworkError(f"{backbone}: the module {name} defines no function {function!r}")
    try:
        net = build()
    except (Exception, SystemExit) as error:
        raise OwnNetworkError(f"{backbone}() raised {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise OwnNetworkError(f"{backbone}() must return an nn.Module, but returned {_kind(net)}")
    return net


def _feature_size(backbone: str, net: nn.Module, image_size: int) -> int:
    given = getattr(net, "feature_size", None)
    if isinstance(given, int):
        return given
    was_training = net.training
    try:
        with torch.no_grad():
            out = net.eval()(torch.zeros(2, 3, image_size, image_size))
    except (Exception, SystemExit) as error:
        raise OwnNetworkError(f"{backbone}: {type(error).__name__}: {error}") from error
    net.train(was_training)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise OwnNetworkError(f"{backbone} must return features [N, n], but returned {_kind(out)}")
    return int(out.shape[1])


def _colour(net: nn.Module, name: str, default: Colour) -> Colour:
    values = getattr(net, name, default)
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise OwnNetworkError(f"{name} must be three numbers, but is {values!r}") from error
    is_finite = all(map(math.isfinite, (red, green, blue)))
    if not is_finite or (name == "std" and min(red, green, blue) <= 0):
        raise OwnNetworkError(f"{name} must be three numbers, std above 0, but is {values!r}")
    return red, green, blue


def _kind(value: object) -> str:
    """Describe a value that is wrong in a few words."""
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
