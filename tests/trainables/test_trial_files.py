from dataclasses import replace

import pytest
import torch

from trainables.trial_files import TrialIdentity, pack, unpack

TRIAL = TrialIdentity("1f", 3, {"backbone": "tinynet", "lr": 1 / 3, "class_weights": False})


def test_a_trial_reads_what_it_wrote():
    file = pack(TRIAL, {"weights": {"w": torch.arange(3)}, "epoch": 2})
    content = unpack(replace(TRIAL, params=dict(TRIAL.params)), file)
    assert torch.equal(content["weights"]["w"], torch.arange(3))
    assert content["epoch"] == 2


@pytest.mark.parametrize(
    "other",
    [
        replace(TRIAL, run_id="2f"),
        replace(TRIAL, number=4),
        replace(TRIAL, params={**TRIAL.params, "lr": 0.3333}),
        replace(TRIAL, params={"backbone": "tinynet"}),
    ],
)
def test_another_trial_does_not(other):
    assert unpack(other, pack(TRIAL, {"epoch": 2})) is None


@pytest.mark.parametrize("file", [b"", b"PK\x03\x04 cut off", pack(TRIAL, [1])[:-40]])
def test_a_damaged_file_holds_nothing(file):
    assert unpack(TRIAL, file) is None


def test_a_file_without_a_trial_holds_nothing(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "best.pt")
    assert unpack(TRIAL, (tmp_path / "best.pt").read_bytes()) is None
