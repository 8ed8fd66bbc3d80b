"""Accuracy of backbones' published weights on ImageNet's validation images, as published.

torchvision has it beside its weights. timm's wheel has no tables, so those of a few networks are
here, from its `results/results-imagenet.csv`, at the image size that they were trained with.
"""

from __future__ import annotations

from spaces.timm_names import PREFIX
from trainables.pretrained.timm_weights import timm_source
from trainables.pretrained.weight_files import FROM_SCRATCH
from trainables.pretrained.weights import PACKAGED, WeightsError

_TIMM_PERCENT = {
    "tf_efficientnet_lite0.in1k": 74.846,
    "tf_efficientnet_lite1.in1k": 76.674,
    "tf_efficientnet_lite2.in1k": 77.47,
    "tf_efficientnet_lite3.in1k": 79.808,
    "tf_efficientnet_lite4.in1k": 81.54,
    "tf_efficientnetv2_b0.in1k": 76.876,
    "tf_efficientnetv2_b1.in1k": 77.934,
    "tf_efficientnetv2_b2.in1k": 79.208,
    "tf_efficientnetv2_b3.in21k_ft_in1k": 81.078,
    "tf_efficientnetv2_s.in21k_ft_in1k": 83.348,
    "mobilenetv4_conv_small.e2400_r224_in1k": 73.756,
    "mobilenetv4_conv_medium.e500_r256_in1k": 79.916,
    "convnext_atto.d2_in1k": 75.672,
    "convnext_femto.d1_in1k": 77.498,
    "convnext_pico.d1_in1k": 79.516,
    "convnext_nano.in12k_ft_in1k": 82.306,
    "convnext_tiny.in12k_ft_in1k": 84.192,
    "convnextv2_atto.fcmae_ft_in1k": 76.644,
    "convnextv2_femto.fcmae_ft_in1k": 78.476,
    "convnextv2_pico.fcmae_ft_in1k": 80.304,
    "convnextv2_nano.fcmae_ft_in22k_in1k": 82.038,
    "convnextv2_tiny.fcmae_ft_in22k_in1k": 83.904,
    "convnextv2_base.fcmae_ft_in22k_in1k": 86.752,
    "resnet18.a1_in1k": 71.504,
    "resnet34.a1_in1k": 76.42,
    "resnet50.a1_in1k": 80.382,
    "resnet50d.ra2_in1k": 80.546,
    "resnetv2_50.a1h_in1k": 80.41,
    "regnety_004.tv2_in1k": 75.594,
    "regnety_008.pycls_in1k": 76.334,
    "regnety_016.tv2_in1k": 80.668,
    "regnety_032.ra_in1k": 81.948,
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": 75.452,
    "vit_small_patch16_224.augreg_in21k_ft_in1k": 81.402,
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": 85.108,
    "vit_base_patch16_clip_224.openai_ft_in1k": 85.282,
    "deit_tiny_patch16_224.fb_in1k": 72.19,
    "deit_small_patch16_224.fb_in1k": 79.856,
    "deit3_small_patch16_224.fb_in1k": 81.382,
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": 80.648,
    "eva02_small_patch14_336.mim_in22k_ft_in1k": 85.77,
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k": 88.678,
    "beit_base_patch16_224.in22k_ft_in22k_in1k": 85.238,
    "beitv2_base_patch16_224.in1k_ft_in22k_in1k": 86.494,
    "swin_tiny_patch4_window7_224.ms_in1k": 81.388,
    "swinv2_tiny_window8_256.ms_in1k": 81.824,
    "caformer_s18.sail_in1k": 83.664,
    "fastvit_t8.apple_in1k": 76.184,
    "fastvit_sa12.apple_in1k": 80.846,
    "repvgg_a2.rvgg_in1k": 76.488,
    "densenet121.ra_in1k": 75.574,
    "efficientnet_b0.ra_in1k": 77.698,
    "efficientnet_b1.ra4_e3600_r240_in1k": 80.404,
    "efficientnet_b2.ra_in1k": 79.324,
    "efficientnet_b3.ra2_in1k": 81.472,
    "mobilenetv3_large_100.ra_in1k": 75.784,
    "mobilenetv2_100.ra_in1k": 72.91,
    "edgenext_small.usi_in1k": 81.068,
    "levit_128s.fb_dist_in1k": 76.52,
    "ghostnetv2_100.in1k": 75.186,
    "hgnetv2_b0.ssld_stage2_ft_in1k": 77.362,
    "hgnetv2_b2.ssld_stage2_ft_in1k": 81.564,
    "hgnetv2_b4.ssld_stage2_ft_in1k": 83.7,
    "mobilenetv4_conv_medium.e500_r224_in1k": 79.092,
    "tiny_vit_5m_224.dist_in22k_ft_in1k": 80.874,
    "tiny_vit_11m_224.dist_in22k_ft_in1k": 83.232,
    "tiny_vit_21m_224.dist_in22k_ft_in1k": 85.088,
}
"""By timm's name with its tag."""


def published_accuracy(backbone: str) -> float | None:
    """Return the top-1 accuracy in [0, 1] on ImageNet-1k; None where it is not known.

    Args:
        backbone: Its name; of timm's networks without a tag, timm's default weights.
    """
    if backbone in FROM_SCRATCH or backbone in PACKAGED or ":" in backbone:
        return None
    if backbone.startswith(PREFIX):
        name = backbone.removeprefix(PREFIX)
        if "." not in name:
            try:
                name = f"{name}.{timm_source(backbone).tag}"
            except WeightsError:
                return None
        percent = _TIMM_PERCENT.get(name)
        return None if percent is None else percent / 100
    from torchvision.models import get_model_weights

    weights = get_model_weights(backbone)["DEFAULT"]
    return float(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]) / 100
