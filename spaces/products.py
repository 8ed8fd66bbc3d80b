"""Product photos of a shop (the study's classes: jeans, sofa, tshirt, tv), a folder per class.

    python -m search.run --space spaces/products.py --data DIR

The study cleaned irrelevant images out by hand and trained MobileNetV2 on 80 % of the rest for at
most 30 epochs, stopping after 5 without a gain; its own recipe is the first trial.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(
        obtain="the study's images lie on Kaggle (search there for 'e-commerce product images'),"
        " which needs an account; any folder of product photos will do: give the folder that holds"
        " one folder per product"
    ),
    params={
        "backbone": CategoricalDistribution(["mobilenet_v2", "resnet18", "efficientnet_b0"]),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "dropout": FloatDistribution(0.0, 0.6),
        "augment": FloatDistribution(0.0, 1.0),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "scheduler": "cosine",
    },
    image_size=224,
    epochs=30,
    trials=40,
    folds=5,
    first_trials=(
        {
            "backbone": "mobilenet_v2",
            "lr": 1e-3,
            "freeze_depth": 5,
            "dropout": 0.2,
            "augment": 0.0,
            "weight_decay": 1e-6,
        },
    ),
    patience=5,
)
