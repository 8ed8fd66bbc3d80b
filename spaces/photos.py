"""Photos of anything, in one folder per class: the space of `--data` without `--space`.

    python -m search.run --data DIR

The baseline is what most people would try first: a pretrained MobileNetV2 whose stages stay frozen,
and a new linear head.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.portfolio import PORTFOLIO
from spaces.sources import folder

SPACE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(list(PORTFOLIO)),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "dropout": FloatDistribution(0.0, 0.6),
        "augment": FloatDistribution(0.0, 1.0),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "scheduler": "cosine",
    },
    image_size=224,
    epochs=20,
    trials=32,
    folds=5,
    first_trials=(
        {
            "backbone": "mobilenet_v2",
            "lr": 1e-3,
            "freeze_depth": 5,
            "dropout": 0.2,
            "augment": 0.2,
            "weight_decay": 1e-4,
        },
    ),
    patience=5,
)
