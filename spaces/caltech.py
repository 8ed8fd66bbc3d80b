"""Six classes of Caltech-101: camera, brain, Faces, watch, ketch, dollar_bill.

    python -m search.run --space caltech

The baseline is the study's own configuration: ResNet18, fine-tuned for 20 epochs with rotation,
flips and colour changes. The study reported an accuracy of 47.67% on external photos.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.base import Space
from spaces.sources import caltech101

SPACE = Space(
    source=caltech101(classes=("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")),
    params={
        "backbone": CategoricalDistribution(
            ["resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0"]
        ),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_depth": IntDistribution(0, 5),
        "dropout": FloatDistribution(0.0, 0.6),
        "augment": FloatDistribution(0.0, 1.0),
        "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
        "scheduler": "cosine",
    },
    image_size=224,
    epochs=20,
    trials=48,
    folds=5,
    first_trials=(
        {
            "backbone": "resnet18",
            "lr": 1e-3,
            "freeze_depth": 4,
            "dropout": 0.0,
            "augment": 0.3,
            "weight_decay": 1e-4,
        },
    ),
)
