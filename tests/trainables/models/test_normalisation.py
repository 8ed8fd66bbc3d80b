import torch
from torchvision import transforms

from trainables.images import MEAN, STD
from trainables.models.backbones import create_backbone
from trainables.models.normalisation import Normalise

MEAN_OF_TIMM = (0.5, 0.4, 0.3)
STD_OF_TIMM = (0.25, 0.5, 0.125)


def test_normalise_equals_torchvisions() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for mean, std in ((MEAN, STD), (MEAN_OF_TIMM, STD_OF_TIMM)):
        expected = transforms.Normalize(mean, std)(pixels)
        torch.testing.assert_close(Normalise(mean, std)(pixels), expected, rtol=1e-5, atol=1e-5)


def test_its_tensors_are_not_saved_with_the_weights() -> None:
    assert Normalise().state_dict() == {}


@torch.no_grad()
def test_a_backbone_normalises_before_its_first_stage_alone() -> None:
    backbone = create_backbone("tinynet").eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = backbone(pixels, 0, 2)
    torch.testing.assert_close(torch.nn.Sequential(*backbone.stages[:2])(Normalise()(pixels)), x)
    torch.testing.assert_close(torch.nn.Sequential(*backbone.stages[2:])(x), backbone(x, 2))
    assert torch.equal(backbone(pixels, 0, 0), pixels)
    torch.testing.assert_close(backbone(x, 2), backbone(pixels))


def test_each_backbone_has_its_own_mean_and_deviation() -> None:
    lite = create_backbone("timm/tf_efficientnet_lite0", image_size=32).normalise
    assert (lite.mean, lite.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    ours = create_backbone("mobilenet_v2").normalise
    assert (ours.mean, ours.std) == (MEAN, STD)
