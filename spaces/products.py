"""Product photos of a shop (jeans, sofa, tshirt, tv), in one folder per class.

    python -m search.run --space products --data DIR

The baseline is the study's own configuration: MobileNetV2, trained on 80% of the images for at most
30 epochs, with early stopping after 5 epochs without improvement. The study removed irrelevant
images by hand.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(
        obtain="the study's images are on Kaggle (search there for 'e-commerce product images'),"
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
        "scheduler": CategoricalDistribution(["cosine", "none"]),
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
            "scheduler": "none",
        },
    ),
    patience=5,
)
