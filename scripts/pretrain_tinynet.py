"""Pretrain `tinynet` on letters and digits rendered from matplotlib's fonts.

python scripts/pretrain_tinynet.py [--seed 0] [--out trainables/weights/tinynet.pth]

Takes 3.5 minutes on one core. On one machine and with the same versions, the same seed gives the
same tensors.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spaces.glyphs import CHARACTERS, EXTERNAL_FONTS, PRETRAINING_FONTS, render_glyphs
from trainables.images import MEAN, STD
from trainables.models.small_networks import tinynet_stages

N_GLYPHS = 30_000
N_TEST_GLYPHS = 2_000
N_EPOCHS = 10
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
MAX_SHIFT_PIXELS = 2
MAX_NOISE = 0.1


def main() -> None:
    """Pretrain `tinynet`, print its accuracy, and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("trainables/weights/tinynet.pth"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    # One thread, so that sums have the same order whatever the number of cores.
    torch.set_num_threads(1)
    stages = pretrain(arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # In half precision the file is below 1 MB, and features change by about 0.1%.
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in stages.state_dict().items()
    }
    torch.save(state, arguments.out)
    n_kilobytes = arguments.out.stat().st_size / 1e3
    print(f"{arguments.out}: {n_kilobytes:.0f} kB, {time.perf_counter() - started:.0f} s in all")


def pretrain(seed: int) -> nn.ModuleList:
    """Train the stages with a linear head on glyphs, printing each epoch's loss.

    Args:
        seed: Seed of the glyphs, the initial weights, the order and the augmentation.

    Returns:
        The five stages, on the CPU and in eval mode, without the head.
    """
    images, labels = (torch.from_numpy(part) for part in render_glyphs(N_GLYPHS, seed=seed))
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    modules, n_features = tinynet_stages()
    stages = nn.ModuleList(modules)
    network = nn.Sequential(*stages, nn.Linear(n_features, len(CHARACTERS)))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    n_batches = N_GLYPHS // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=N_EPOCHS * n_batches
    )
    for epoch in range(N_EPOCHS):
        network.train()
        started, total_loss = time.perf_counter(), 0.0
        order = torch.randperm(N_GLYPHS, generator=generator)
        for batch in order[: n_batches * BATCH_SIZE].split(BATCH_SIZE):
            logits = network(_normalise(_augment(images[batch] / 255, generator)))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
        print(
            f"epoch {epoch + 1}/{N_EPOCHS}: loss {total_loss / n_batches:.3f}, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    network.eval()
    for name, fonts in (("pretraining", PRETRAINING_FONTS), ("external", EXTERNAL_FONTS)):
        print(f"glyphs of {name} fonts: accuracy {_accuracy(network, fonts, seed + 1):.3f}")
    return stages


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift a batch, scale the brightness of each image, and add noise.

    Args:
        images: [N, H, W] in [0, 1].
        generator: Source of the random draws.

    Returns:
        [N, H, W] in [0, 1].
    """
    shift_y, shift_x = torch.randint(
        -MAX_SHIFT_PIXELS, MAX_SHIFT_PIXELS + 1, (2,), generator=generator
    ).tolist()
    padded = F.pad(images, (MAX_SHIFT_PIXELS,) * 4)
    height, width = images.shape[1:]
    top, left = MAX_SHIFT_PIXELS + shift_y, MAX_SHIFT_PIXELS + shift_x
    shifted = padded[:, top : top + height, left : left + width]
    gain = torch.empty(len(images), 1, 1).uniform_(0.7, 1.0, generator=generator)
    noise = torch.randn(shifted.shape, generator=generator)
    deviation = torch.empty(len(images), 1, 1).uniform_(0, MAX_NOISE, generator=generator)
    return (shifted * gain + noise * deviation).clamp(0, 1)


def _normalise(images: Tensor) -> Tensor:
    """Convert grayscale images [N, H, W] in [0, 1] to ImageNet-normalised RGB [N, 3, H, W]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    normalised = (images.unsqueeze(1) - mean) / std
    return normalised.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _accuracy(network: nn.Module, fonts: tuple[str, ...], seed: int) -> float:
    """Return the accuracy on new glyphs, which similar ones (0 O o, 1 I l) keep below 1."""
    images, labels = render_glyphs(N_TEST_GLYPHS, seed=seed, fonts=fonts)
    logits = network(_normalise(torch.from_numpy(images) / 255))
    return (logits.argmax(1) == torch.from_numpy(labels)).float().mean().item()


if __name__ == "__main__":
    main()
