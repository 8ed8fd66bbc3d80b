"""Model files of unknown origin: what they claim takes no more memory or time than they have."""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.models.test_model import HEAVY, LIGHT, part
from trainables.models.model import join, load_model, predict, save_model
from trainables.models.model_card import ModelError

MAX_BYTES = 600 * 2**20
"""Memory in which each file must be refused, beyond what importing takes."""


def changed_card(content: Any, **changes: Any) -> None:
    first = content["parts"][0]
    first["card"] = json.dumps({**json.loads(first["card"]), **changes})


def many_members(content: Any) -> None:
    changed_card(content, n_members=20_000)
    content["parts"][0]["members"] = content["parts"][0]["members"][:1] * 20_000


def wide_head(content: Any) -> None:
    changed_card(content, hidden_units=65_536)
    for member in content["parts"][0]["members"]:
        member["head.0.weight"] = torch.zeros(65_536, 1)


def stretched(content: Any) -> None:
    for member in content["parts"][0]["members"]:
        member["head.1.weight"] = torch.zeros(1).expand(40_000, 40_000)


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "one member, 20,000 times": (many_members, "a part has at most 100 members, but one has 20000"),
    "all members as one": (
        lambda content: content["parts"][0].update(
            members=content["parts"][0]["members"][:1] * 100
        ),
        "its weights take .* bytes, but it stores",
    ),
    "one number as 1.6 billion": (stretched, "its weights take .* bytes, but it stores"),
    "a head of hidden units": (wide_head, "the weights do not fit tinynet: head.0.weight must be"),
    "a network of 600 MB": (
        lambda content: changed_card(content, backbone="timm/vit_huge_patch14_clip_224"),
        "timm/vit_huge_patch14_clip_224 for images of 32 pixels has .* values, but there are",
    ),
    "a network for huge images": (
        lambda content: changed_card(
            content, backbone="timm/vit_tiny_patch16_224", image_size=4096, cache_size=4096
        ),
        "for images of 4096 pixels has .* values",
    ),
    "a sparse tensor": (
        lambda content: content["parts"][0]["prefix"].update(
            x=torch.sparse_coo_tensor([[0]], [1.0], (10**12,))
        ),
        "'x' is no dense tensor",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.pt"
    save_model(join([part(HEAVY, 1, ood=True), part(LIGHT, 5, ood=True)], [0.75, 0.25]), path)
    return path


def rewritten(saved: Path, path: Path, change: Callable[[Any], object]) -> Path:
    content = torch.load(saved, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_claims_more_than_it_has_is_refused(
    saved: Path, tmp_path: Path, name: str
) -> None:
    change, reason = HOSTILE[name]
    path = rewritten(saved, tmp_path / "model.pt", change)
    assert path.stat().st_size < 10 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=reason):
        load_model(path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_BYTES


def test_a_compressed_file_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(saved) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
        small.writestr("archive/data/bomb", bytes(2**27))
    with pytest.raises(ModelError, match=r"bytes unpack to 1.*, and a model is not compressed"):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(saved: Path, tmp_path: Path, value: float) -> None:
    def spoil(content: Any) -> None:
        content["parts"][1]["members"][0]["head.3.bias"][0] = value

    with pytest.raises(ModelError, match="is damaged: a weight is no finite number"):
        load_model(rewritten(saved, tmp_path / "model.pt", spoil))


def test_weights_that_overflow_give_an_error_and_no_nan(saved: Path, tmp_path: Path) -> None:
    def enlarge(content: Any) -> None:
        for weight in content["parts"][1]["members"][0].values():
            weight.fill_(3e38)

    model = load_model(rewritten(saved, tmp_path / "model.pt", enlarge))
    with pytest.raises(ModelError, match="probabilities that are no numbers"):
        predict(model, torch.full((1, 36, 36, 3), 255, dtype=torch.uint8))
