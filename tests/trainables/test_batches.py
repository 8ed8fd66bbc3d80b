import pytest
import torch

from trainables.batches import CachedBatches, ImageBatches, ImageSet
from trainables.feature_cache import FeatureCache, as_features, build_view
from trainables.models.backbones import create_backbone
from trainables.models.weights import PACKAGED, load_weights

CPU = torch.device("cpu")
N_IMAGES = 72


@pytest.mark.parametrize("depth", [3, 5])
def test_cached_and_computed_batches_are_equal_without_augmentation(depth: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 256, (N_IMAGES, 32, 32, 3), generator=generator, dtype=torch.uint8)
    images = ImageSet(table, torch.zeros(N_IMAGES, dtype=torch.long), 1, 32, flip=True)
    backbone = create_backbone("tinynet", load_weights(PACKAGED["tinynet"]))
    backbone = backbone.to(memory_format=torch.channels_last).eval()
    backbone.freeze(depth)
    view = as_features(build_view(backbone, table, 32, 0.0, True, (depth,), 0, CPU)[depth])
    cache = FeatureCache((view.split(50),), 1, torch.arange(N_IMAGES), block_size=50)
    cached, computed = CachedBatches(cache, 0.0), ImageBatches(images, backbone, 0.0)
    rows = torch.arange(N_IMAGES)
    clean = cached.clean(rows).float()
    assert clean.std() > 0.1, "the tolerance would hide a mistake"
    torch.testing.assert_close(computed.clean(rows).float(), clean, atol=1e-2, rtol=2e-2)
    trained = computed.train(rows, generator).float()
    torch.testing.assert_close(trained, clean, atol=1e-2, rtol=2e-2)
    torch.testing.assert_close(cached.train(rows, generator).float(), clean)
