import os
from pathlib import Path

import pytest

from search.runs.storage import SharedFiles
from search.tuning.checkpoints import BEST_WEIGHTS, Keeper, start_keeper


def kept_on_disk(trials: Path) -> dict[int, bytes]:
    return {int(path.parent.name): path.read_bytes() for path in trials.rglob(BEST_WEIGHTS)}


def offer_all(keeper: Keeper, scores: dict[int, tuple[float, float]]) -> None:
    """Offer trials as workers do: only those that are wanted."""
    for number, score in scores.items():
        if keeper.wants(number, score):
            keeper.offer(number, score, f"weights {number}".encode())


def test_the_best_few_are_kept_and_the_others_let_go(tmp_path):
    scores = {0: (0.5, -1.0), 1: (0.9, -1.0), 2: (0.4, -1.0), 3: (0.7, -1.0), 4: (0.6, -1.0)}
    offer_all(Keeper(tmp_path, 2, {}), scores)
    assert kept_on_disk(tmp_path) == {1: b"weights 1", 3: b"weights 3"}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_loser_of_a_full_house_leaves_nothing_even_if_offered(tmp_path):
    keeper = Keeper(tmp_path, 1, {})
    keeper.offer(0, (0.9, -1.0), b"best")
    keeper.offer(1, (0.5, -1.0), b"worse")
    assert kept_on_disk(tmp_path) == {0: b"best"}


def test_other_files_of_a_trial_stay(tmp_path):
    keeper = Keeper(tmp_path, 1, {})
    keeper.offer(0, (0.5, -1.0), b"good")
    (tmp_path / "0" / "progress.csv").touch()
    keeper.offer(1, (0.9, -1.0), b"better")
    assert kept_on_disk(tmp_path) == {1: b"better"}
    assert (tmp_path / "0" / "progress.csv").exists()


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        ((0.8, -0.5), True),
        ((0.7, -0.4), True),
        ((0.7, -0.5), False),
        ((0.7, -0.6), False),
        ((0.6, 0.0), False),
    ],
)
def test_only_what_beats_the_worst_kept_is_wanted(tmp_path, score, wanted):
    keeper = Keeper(tmp_path, 2, {})
    keeper.offer(4, (0.9, -0.1), b"best")
    keeper.offer(5, (0.7, -0.5), b"good")
    assert keeper.wants(9, score) is wanted


def test_while_there_is_room_anything_is_wanted(tmp_path):
    keeper = Keeper(tmp_path, 2, {})
    keeper.offer(4, (0.9, -0.1), b"best")
    assert keeper.wants(9, (0.0, -9.0))


def test_a_trial_is_not_its_own_rival(tmp_path):
    keeper = Keeper(tmp_path, 1, {})
    keeper.offer(4, (0.9, -0.1), b"once")
    assert keeper.wants(4, (0.9, -0.1))
    keeper.offer(4, (0.9, -0.1), b"again")
    assert kept_on_disk(tmp_path) == {4: b"again"}


def test_what_an_earlier_session_kept_is_let_go_when_beaten(tmp_path):
    for number in (4, 5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / BEST_WEIGHTS).write_bytes(b"earlier")
    # A run carried on knows all its trials' scores, also of those whose weights are not there.
    earlier = {4: (0.9, -0.1), 5: (0.7, -0.5), 6: (0.99, -0.1)}
    keeper = Keeper(tmp_path, 2, earlier)
    assert not keeper.wants(7, (0.6, -0.2))
    offer_all(keeper, {8: (0.8, -0.2)})
    assert kept_on_disk(tmp_path) == {4: b"earlier", 8: b"weights 8"}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_keeper_that_is_started_anew_knows_what_was_kept(tmp_path, damaged):
    offer_all(Keeper(tmp_path, 1, {}), {0: (0.9, -0.1), 1: (0.95, -0.1)})
    if damaged:
        (tmp_path / "kept.json").write_bytes(b"[[1, [0.9")
    anew = Keeper(tmp_path, 1, {})  # as Ray calls it: with what it was begun with
    assert anew.wants(2, (0.5, -0.1)) is damaged
    offer_all(anew, {3: (0.99, -0.1)})
    assert 3 in kept_on_disk(tmp_path)
    assert (kept_on_disk(tmp_path).keys() == {3}) is not damaged


def test_a_crash_while_writing_leaves_the_old_weights(tmp_path, monkeypatch):
    keeper = Keeper(tmp_path, 2, {})
    keeper.offer(0, (0.5, -1.0), b"whole")
    keeper.checkpoint(1, b"epoch 1")

    def crash(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="No space left"):
        keeper.offer(0, (0.6, -1.0), b"newer")
    with pytest.raises(OSError, match="No space left"):
        keeper.checkpoint(1, b"epoch 2")
    assert kept_on_disk(tmp_path) == {0: b"whole"}
    assert keeper.last_checkpoint(1) == b"epoch 1"


def test_a_running_trial_has_one_checkpoint_until_it_ends(tmp_path):
    keeper = Keeper(tmp_path, 1, {})
    assert keeper.last_checkpoint(3) is None
    keeper.checkpoint(3, b"epoch 1")
    keeper.checkpoint(3, b"epoch 2")
    keeper.offer(4, (0.9, -0.1), b"best")
    keeper.offer(3, (0.5, -0.1), b"loser")
    assert keeper.last_checkpoint(3) == b"epoch 2", "losing the weights is not losing the trial"
    assert Keeper(tmp_path, 1, {}).last_checkpoint(3) == b"epoch 2"
    keeper.forget(3)
    keeper.forget(3)
    assert keeper.last_checkpoint(3) is None


def test_weights_in_shared_storage_come_home(tmp_path, ray_session):
    shared = SharedFiles(str(tmp_path / "storage"), "run").within("trials")
    home = tmp_path / "run" / "trials"
    keeper = start_keeper(home, 1, {}, shared)
    keeper.checkpoint(0, b"epoch 1")
    keeper.offer(0, (0.5, -1.0), b"good")
    keeper.offer(1, (0.9, -1.0), b"better")
    assert keeper.wants(2, (0.6, -1.0)) is False
    assert keeper.last_checkpoint(0) == b"epoch 1"
    assert kept_on_disk(tmp_path / "storage") == {1: b"better"}
    assert not home.exists(), "nothing passes through the driver"
    keeper.bring_home(home)
    assert kept_on_disk(home) == {1: b"better"}
    keeper.forget(0)
    again = start_keeper(home, 1, {1: (0.9, -1.0)}, shared)
    assert again.wants(2, (0.6, -1.0)) is False, "what an earlier session kept is known"
    assert again.last_checkpoint(0) is None
