import json

import pytest

from search.backbones import main


def test_a_table_of_some_backbones(capsys):
    assert main(["mobilenet_v3*", "--image-size", "96"]) == 0
    out = capsys.readouterr().out
    head, small, large = out.splitlines()[:3]
    assert head.split() == [
        "backbone",
        "parameters",
        "GFLOPs",
        "ImageNet",
        "top-1",
        "licence",
        "weights",
    ]
    assert small.split()[:6] == ["mobilenet_v3_small", "0.9", "M", "0.01", "67.7%", "bsd-3-clause"]
    assert large.startswith("mobilenet_v3_large ")
    assert "multiply-adds of an image of 96 × 96 pixels" in out
    assert "timm" not in out


def test_restricted_licences_are_marked(capsys):
    names = ["timm/convnextv2_atto.fcmae", "timm/vit_small_patch16_dinov3.lvd1689m"]
    for name, mark in zip(
        names, ["cc-by-nc-4.0: non-commercial", "dinov3-license: own licence"], strict=True
    ):
        assert main([name]) == 0
        assert mark in capsys.readouterr().out


def test_json(capsys, tmp_path):
    (tmp_path / "tinynet.pth").touch()
    assert main(["t*t", "--json", "--measure", "--weights", str(tmp_path)]) == 0
    (info,) = json.loads(capsys.readouterr().out)
    assert info["name"] == "tinynet"
    assert info["weights"] == str(tmp_path / "tinynet.pth")
    assert (info["licence"], info["restriction"]) == ("apache-2.0", None)
    assert info["latency_ms"] > 0
    assert info["imagenet_top1"] is None


def test_mistakes(capsys, tmp_path):
    assert main(["timm/convnxt_tiny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no backbone 'timm/convnxt_tiny'; did you mean timm/co")
    assert error.count("\n") == 1
    assert main(["mobilenet_v2", "--weights", str(tmp_path / "no")]) == 2
    assert "--weights must be a folder, but got " in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["--image-size", "7"])
    assert left.value.code == 2
