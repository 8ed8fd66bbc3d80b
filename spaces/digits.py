"""Handwritten digits, which need no download: the space of a run without options.

    python -m search.run

The images are scikit-learn's 1,797 digits, and the weights of the small backbone `tinynet` are part
of the package. The external test set are digits rendered in fonts that `tinynet` was not pretrained
on.

A run takes about two minutes on 2 cores.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.sources import digits, rendered_digits

SPACE = Space(
    source=digits(),
    external=rendered_digits(),
    params={
        "backbone": CategoricalDistribution(["tinynet", "cnn"]),
        "lr": FloatDistribution(1e-4, 3e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "dropout": FloatDistribution(0.0, 0.5),
        "augment": FloatDistribution(0.0, 0.6),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "scheduler": "cosine",
        "batch_size": 64,
    },
    image_size=32,
    resize_size=32,
    epochs=10,
    trials=12,
    folds=5,
    first_trials=(
        {
            "backbone": "tinynet",
            "lr": 3e-3,
            "freeze_depth": 0,
            "dropout": 0.1,
            "augment": 0.3,
            "weight_decay": 1e-4,
        },
    ),
    flip=False,
)
