"""Fashion-MNIST: 60,000 + 10,000 grayscale images of 28 × 28 pixels, ten classes.

    python -m search.run --space fashion_mnist

The study compared a CNN with a ResNet, one of them pretrained on a similar set, trained with Adam
and augmented by rotation, shift, scaling and flips. Here `tinynet`, pretrained on glyphs, is that
network; the baseline is the CNN.

Two trials of 28 epochs with `--backbones tinynet` and four folds take about an hour on 2 cores.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.sources import fashion_mnist

SPACE = Space(
    source=fashion_mnist(),
    params={
        "backbone": CategoricalDistribution(["tinynet", "cnn", "resnet18"]),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 3),
        "dropout": FloatDistribution(0.0, 0.5),
        "augment": FloatDistribution(0.0, 0.6),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "batch_size": CategoricalDistribution([32, 64, 128]),
        "optimizer": "adam",
        "scheduler": "cosine",
    },
    image_size=28,
    resize_size=28,
    epochs=15,
    trials=30,
    folds=5,
    first_trials=(
        {
            "backbone": "cnn",
            "lr": 1e-3,
            "freeze_depth": 0,
            "dropout": 0.25,
            "augment": 0.2,
            "weight_decay": 1e-5,
            "batch_size": 64,
        },
        {
            "backbone": "tinynet",
            "lr": 2e-3,
            "freeze_depth": 0,
            "dropout": 0.1,
            "augment": 0.4,
            "weight_decay": 1e-4,
            "batch_size": 64,
        },
    ),
)
