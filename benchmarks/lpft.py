"""Does a head that begins as the linear probe help (LP-FT, arXiv 2202.10054)?

```
python benchmarks/lpft.py
```

Trains the same configurations with and without the probe's head, over several seeds, on the six
Caltech classes with MobileNetV2, and compares held-out and external accuracy after one epoch and
after the full length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from search.listing import scan, scan_external
from spaces.base import TrialConfig
from spaces.sources import caltech101
from trainables.backbones import create_backbone
from trainables.images import fit, read_picture
from trainables.probe import fit_head
from trainables.training import PictureSet, Trainer
from trainables.viewbank import ViewBank, as_features, build_view, view_magnitude
from trainables.weights import load_weights

CLASSES = ("camera", "brain", "Faces", "watch", "ketch", "dollar_bill")
PACKED, SIZE, N_VIEWS, EPOCHS = 256, 224, 4, 6
DEPTHS = (3, 4, 5)


def pack(paths: tuple[Path, ...]) -> torch.Tensor:
    """Decode pictures: uint8 [N, S, S, 3]."""
    return torch.from_numpy(np.stack([fit(read_picture(p), PACKED, SIZE) for p in paths]))


def main() -> int:
    """Measure, print a table, and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"error: --data must hold caltech101/, external/, weights/: {options.data}")
        return 2
    listing = scan(caltech101(CLASSES), options.data / "caltech101", Path("/nowhere"), 5, None, 0)
    outside = scan_external(options.data / "external" / "caltech6", listing.classes)
    table = pack((listing.paths or ()) + (outside.paths or ()))
    labels = torch.from_numpy(np.concatenate([listing.labels, outside.labels]))
    pictures = PictureSet(table, labels, len(CLASSES), SIZE, True)
    external = torch.arange(len(listing.labels), len(labels))
    state = load_weights(options.data / "weights" / "mobilenet_v2.pth")
    cpu = torch.device("cpu")
    network = create_backbone("mobilenet_v2", state).eval().to(memory_format=torch.channels_last)
    views: dict[int, list[tuple[torch.Tensor, ...]]] = {depth: [] for depth in DEPTHS}
    for view in range(N_VIEWS):
        magnitude = view_magnitude(view, N_VIEWS)
        made = build_view(network, table, SIZE, magnitude, True, DEPTHS, view, cpu)
        for depth in DEPTHS:
            views[depth].append((as_features(made[depth]),))
    rows = torch.arange(len(labels))
    banks = {d: ViewBank(tuple(views[d]), N_VIEWS, rows, len(labels)) for d in DEPTHS}
    results: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        order = torch.randperm(len(listing.labels), generator=torch.Generator().manual_seed(seed))
        train, held_out = order[:600], order[600:]
        head = fit_head(banks[5].clean(train), labels[train], len(CLASSES))
        for depth in DEPTHS:
            for start, name in ((None, "random"), (head, "probe")):
                config = TrialConfig(
                    "mobilenet_v2", options.lr, depth, augment=0.5, scheduler="cosine"
                )
                backbone = create_backbone("mobilenet_v2", state)
                backbone = backbone.to(memory_format=torch.channels_last)
                trainer = Trainer(
                    config, backbone, pictures, train, held_out, EPOCHS, seed, banks[depth], start
                )
                for epoch in range(1, EPOCHS + 1):
                    trainer.run_epoch()
                    if epoch in (1, EPOCHS):
                        for where, part in (("held-out", held_out), ("external", external)):
                            predicted = trainer.predict_logits(part).argmax(1)
                            right = float((predicted == labels[part]).float().mean())
                            key = f"depth {depth}, epoch {epoch}, {where}, {name}"
                            results.setdefault(key, []).append(right)
        print(f"seed {seed} done", file=sys.stderr)
    print(f"MobileNetV2, lr {options.lr:g}, {options.seeds} seeds, torch {torch.__version__}")
    print(f"{'':<28}{'random head':>20}{'probe head':>20}{'difference':>12}")
    for key in [key for key in results if key.endswith("random")]:
        a, b = results[key], results[key.replace("random", "probe")]
        print(
            f"{key.removesuffix(', random'):<28}"
            f"{statistics.mean(a):>11.4f} ± {statistics.stdev(a):.4f}"
            f"{statistics.mean(b):>11.4f} ± {statistics.stdev(b):.4f}"
            f"{statistics.mean(b) - statistics.mean(a):>+12.4f}"
        )
    out = Path("benchmarks/results/lpft.json")
    out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
