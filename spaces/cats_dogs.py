"""Cats and dogs, in folders train/ and test/ of one folder per class.

    python -m search.run --space cats_dogs --data DIR

The study compared a plain CNN (training accuracy 95%, validation accuracy 78%), the same with
dropout (86%, 84%), with augmentation too (79%, 78%), and transfer learning from ResNet50 (99%,
99%). The ablation after the search repeats that; the baseline is the last of these.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(
        obtain="the images are those of Kaggle's 'Dogs vs. Cats' competition, which needs an"
        " account: unpack them into train/cats, train/dogs, test/cats and test/dogs, or into cats"
        " and dogs, and give the folder that holds these"
    ),
    params={
        "backbone": CategoricalDistribution(["resnet50", "resnet18", "mobilenet_v2", "cnn"]),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "dropout": FloatDistribution(0.0, 0.6),
        "augment": FloatDistribution(0.0, 1.0),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "scheduler": "cosine",
    },
    image_size=224,
    epochs=15,
    trials=30,
    folds=5,
    first_trials=(
        {"backbone": "resnet50", "lr": 1e-3, "freeze_depth": 5, "dropout": 0.2, "augment": 0.2},
    ),
    ablation=True,
)
