"""Photos of anything, in one folder per class: the space of `--data` without `--space`.

    python -m search.run --data DIR

The baseline is what most people would try first: a pretrained MobileNetV2 whose stages stay frozen,
and a new linear head. Two more first trials fine-tune the last two stages of the best backbone: one
gently, for images like those that it was pretrained on, one with a higher learning rate and its own
BatchNorm statistics, for others (docs/benchmarks.md has the figures).
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.portfolio import PORTFOLIO
from spaces.sources import folder

SPACE = Space(
    source=folder(),
    params={
        "backbone": CategoricalDistribution(list(PORTFOLIO)),
        "lr": FloatDistribution(3e-5, 3e-3, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "dropout": FloatDistribution(0.0, 0.6),
        "augment": FloatDistribution(0.0, 1.0),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "mixup": CategoricalDistribution([0.0, 0.4]),
        "batch_norm": CategoricalDistribution(["frozen", "trained"]),
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
            "mixup": 0.0,
            "batch_norm": "frozen",
        },
        {
            "lr": 3e-4,
            "freeze_depth": 3,
            "dropout": 0.2,
            "augment": 0.3,
            "weight_decay": 1e-4,
            "mixup": 0.4,
            "batch_norm": "frozen",
        },
        {
            "lr": 1e-3,
            "freeze_depth": 3,
            "dropout": 0.2,
            "augment": 0.3,
            "weight_decay": 1e-4,
            "mixup": 0.0,
            "batch_norm": "trained",
        },
    ),
)
