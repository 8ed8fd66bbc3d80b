import subprocess
import sys

import pytest
import timm

from spaces.rules import RULES, backbone_problem
from spaces.timm_names import timm_names, timm_problem


def test_names_read_from_the_source_files_are_those_of_timm() -> None:
    assert {name for name in timm_names() if "." not in name} == set(timm.list_models())
    tagged = {name for name in timm.list_models(include_tags=True) if "." in name}
    # A few tags are put together by code; about those timm is asked.
    assert len(tagged - timm_names()) <= 0.03 * len(tagged)


def test_a_name_is_checked_without_importing_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert timm_problem("timm/vit_small_patch14_dinov2.lvd142m") is None
    assert timm_problem("timm/tf_efficientnet_lite0") is None


def test_every_tagged_name_of_timm_is_one() -> None:
    unread = set(timm.list_models(include_tags=True)) - timm_names()
    assert [name for name in sorted(unread)[:5] if timm_problem(f"timm/{name}")] == []


def test_a_mistyped_name_gets_the_three_nearest() -> None:
    problem = timm_problem("timm/convnextv2_tny")
    assert problem == (
        "timm has no network 'convnextv2_tny'; did you mean timm/convnextv2_tiny,"
        " timm/convnext_tiny, timm/convnextv2_nano?"
    )
    problem = timm_problem("timm/vit_small_patch14_dinov2.lvd142")
    assert problem is not None
    assert "did you mean timm/vit_small_patch14_dinov2.lvd142m, " in problem


def test_a_name_without_its_prefix_is_recognised() -> None:
    hint = "; did you mean 'timm/tf_efficientnet_lite0'?"
    assert str(backbone_problem("tf_efficientnet_lite0")).endswith(hint)
    assert str(RULES["backbone"].broken_by("backbone", "tf_efficientnet_lite0")).endswith(hint)


@pytest.mark.parametrize("name", ["mynets:build", "a.b_1.c:d", "timm/resnet18", "resnet18"])
def test_names_of_backbones(name: str) -> None:
    assert RULES["backbone"].broken_by("backbone", name) is None


@pytest.mark.parametrize("name", ["mynets:", ":build", "my nets:build", "a/b:c", "timm/", 3])
def test_names_of_no_backbones(name: object) -> None:
    assert RULES["backbone"].broken_by("backbone", name) is not None


LOAD = """
import sys
from spaces.timm_names import load_timm
print(load_timm().__name__, "wandb" in sys.modules)
"""


def test_timm_is_imported_without_weights_and_biases() -> None:
    """It imports that to write summaries, which takes two seconds, here and in each worker."""
    pytest.importorskip("wandb")
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=True
    ).stdout
    assert loaded == "timm False\n"
