import copy

import pytest
import torch

from benchmarks.harness.training_parts import Part, PartTrainer
from trainables.batches import ImageSet
from trainables.models.backbones import create_backbone

N = 12


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(256, (N, 37, 37, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(table, torch.arange(N) % 3, 3, 32, flip=True)


def trainer(images: ImageSet, part: Part) -> PartTrainer:
    torch.manual_seed(0)
    backbone = create_backbone("tinynet", None).to(memory_format=torch.channels_last)
    head = {"weight": torch.zeros(3, backbone.feature_size), "bias": torch.zeros(3)}
    return PartTrainer(part, backbone, images, torch.arange(N), 0, None, head)


def head_after(images: ImageSet, part: Part) -> torch.Tensor:
    trained = trainer(images, part)
    trained.run()
    return trained.model.head[-1].weight.detach()  # type: ignore[index, union-attr]


def test_a_slow_head_moves_a_tenth_as_far(images: ImageSet) -> None:
    plain = head_after(images, Part(epochs=1))
    slow = head_after(images, Part(epochs=1, slow_head=True))
    # AdamW's first step is of the learning rate's length, whatever the gradient.
    assert float(slow.abs().max() / plain.abs().max()) == pytest.approx(0.1, rel=0.01)


def test_averaged_weights_lie_between_those_of_the_steps(images: ImageSet) -> None:
    part = Part({"batch_size": 4}, epochs=1, averages=True)
    trained = trainer(images, part)
    steps: list[torch.Tensor] = []
    weight = trained.model.head[-1].weight  # type: ignore[index, union-attr]
    trained._optimizer.register_step_post_hook(lambda *_: steps.append(weight.detach().clone()))
    trained.run()
    assert len(steps) == 3
    first, second, third = steps
    # The shortest average halves what it has at each step.
    torch.testing.assert_close(weight.detach(), (first / 2 + second / 2) / 2 + third / 2)


def test_gradients_are_clipped_to_norm_1(images: ImageSet) -> None:
    norms = []
    for clips in (False, True):
        trained = trainer(images, Part({"freeze_depth": 0}, epochs=1, clips=clips))
        torch.nn.init.normal_(trained.model.head[-1].weight, std=10)  # type: ignore[index, arg-type]
        trained.run()
        gradients = [p.grad.norm() for p in trained.model.parameters() if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
    assert norms[0] > 2
    assert norms[1] == pytest.approx(1, rel=1e-3)


def test_without_epochs_the_linear_probe_is_left(images: ImageSet) -> None:
    trained = trainer(images, Part(epochs=0))
    before = copy.deepcopy(trained.model.state_dict())
    trained.run()
    after = trained.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not trained.predict_logits(torch.arange(N)).any()
