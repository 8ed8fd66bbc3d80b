from collections import Counter

import pytest
import timm

from trainables.pretrained.licences import (
    NON_COMMERCIAL,
    OWN_TERMS,
    UNKNOWN,
    Licence,
    licence_named,
    weights_licence,
)


@pytest.mark.parametrize(
    ("backbone", "licence"),
    [
        ("tinynet", Licence("apache-2.0")),
        ("cnn", Licence("")),
        ("mynets:build", Licence("")),
        ("mobilenet_v2", Licence("bsd-3-clause")),
        ("timm/resnet18.tv_in1k", Licence("bsd-3-clause")),
        ("timm/vit_small_patch14_dinov2.lvd142m", Licence("apache-2.0")),
        ("timm/vit_small_patch16_dinov3.lvd1689m", Licence("dinov3-license", OWN_TERMS)),
        (
            "timm/convnextv2_tiny.fcmae_ft_in22k_in1k",
            Licence("cc-by-nc-4.0", NON_COMMERCIAL),
        ),
        ("timm/resnet50.no_such_tag", Licence(UNKNOWN)),
    ],
)
def test_licences_of_backbones(backbone, licence):
    assert weights_licence(backbone) == licence


def test_who_searches_restricted_weights_is_warned():
    assert weights_licence("mobilenet_v2").warning("mobilenet_v2") is None
    assert licence_named(None).warning("net") is None
    assert licence_named("cc-by-nc-4.0").warning("timm/net") == (
        "the weights of timm/net are not for commercial use (cc-by-nc-4.0)"
    )
    assert licence_named("dinov3-license").warning("timm/net") == (
        "the weights of timm/net have a licence of their own (dinov3-license): read it before you"
        " use the model"
    )


def test_no_licence_that_forbids_something_passes_for_a_free_one():
    """A licence that timm adds is restricted until someone has read it."""
    of = Counter(weights_licence(f"timm/{name}") for name in timm.list_models(pretrained=True))
    free = {one.name for one in of if not one.restriction}
    assert free == {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", UNKNOWN}
    forbidding = {one.name for one in of if one.restriction == NON_COMMERCIAL}
    assert {name for name in (one.name for one in of) if "nc" in name.split("-")} <= forbidding
    assert all("noncommercial" not in one.name for one in of if one.name not in forbidding)
