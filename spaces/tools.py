"""Hand tools, in one folder per class.

    python -m search.run --space tools --data DIR

The baseline is the study's own configuration: ResNet50 with its first 100 layers frozen, a ReLU
layer in the head with dropout 0.5, Adam with a learning rate of 1e-4 that is reduced on a plateau,
aggressive augmentation, class weights, and early stopping.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.sources import folder

SPACE = Space(
    source=folder(
        obtain="the study's images are on Kaggle (search there for 'mechanical tools"
        " classification dataset'), which needs an account: unpack them and give the folder that"
        " holds one folder per tool"
    ),
    params={
        "backbone": CategoricalDistribution(["resnet50", "mobilenet_v2", "efficientnet_b0"]),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "hidden_units": CategoricalDistribution([0, 256, 512]),
        "dropout": FloatDistribution(0.0, 0.6),
        "augment": FloatDistribution(0.0, 1.0),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "scheduler": CategoricalDistribution(["plateau", "cosine"]),
        "class_weights": CategoricalDistribution([True, False]),
        "optimizer": "adam",
    },
    image_size=224,
    epochs=30,
    trials=40,
    folds=5,
    first_trials=(
        {
            # ResNet50's first 100 layers end within its fourth stage of five.
            "backbone": "resnet50",
            "lr": 1e-4,
            "freeze_depth": 3,
            "hidden_units": 256,
            "dropout": 0.5,
            "augment": 0.9,
            "weight_decay": 1e-6,
            "scheduler": "plateau",
            "class_weights": True,
        },
    ),
    patience=8,
)
