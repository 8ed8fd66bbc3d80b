import os
from pathlib import Path

import pytest
import ray

from search.runs.run_folder import BEST_WEIGHTS
from search.runs.storage import SharedFiles
from search.tuning.checkpoints import CheckpointStore, start_checkpoint_store


def kept_on_disk(trials: Path) -> dict[int, bytes]:
    return {int(path.parent.name): path.read_bytes() for path in trials.rglob(BEST_WEIGHTS)}


def submit_all(checkpoints: CheckpointStore, scores: dict[int, tuple[float, float]]) -> None:
    """Submit weights as workers do: only those that would be kept."""
    for number, score in scores.items():
        if checkpoints.would_keep(number, score):
            checkpoints.submit(number, score, f"weights {number}".encode())


def test_the_best_few_are_kept_and_the_others_deleted(tmp_path):
    scores = {0: (0.5, -1.0), 1: (0.9, -1.0), 2: (0.4, -1.0), 3: (0.7, -1.0), 4: (0.6, -1.0)}
    submit_all(CheckpointStore(tmp_path, 2, {}), scores)
    assert kept_on_disk(tmp_path) == {1: b"weights 1", 3: b"weights 3"}
    assert not list(tmp_path.rglob("*.partial"))


def test_weights_that_are_not_among_the_best_leave_nothing_even_if_submitted(tmp_path):
    checkpoints = CheckpointStore(tmp_path, 1, {})
    checkpoints.submit(0, (0.9, -1.0), b"best")
    checkpoints.submit(1, (0.5, -1.0), b"worse")
    assert kept_on_disk(tmp_path) == {0: b"best"}


def test_other_files_of_a_trial_stay(tmp_path):
    checkpoints = CheckpointStore(tmp_path, 1, {})
    checkpoints.submit(0, (0.5, -1.0), b"good")
    (tmp_path / "0" / "progress.csv").touch()
    checkpoints.submit(1, (0.9, -1.0), b"better")
    assert kept_on_disk(tmp_path) == {1: b"better"}
    assert (tmp_path / "0" / "progress.csv").exists()


@pytest.mark.parametrize(
    ("score", "kept"),
    [
        ((0.8, -0.5), True),
        ((0.7, -0.4), True),
        ((0.7, -0.5), False),
        ((0.7, -0.6), False),
        ((0.6, 0.0), False),
    ],
)
def test_only_what_beats_the_worst_kept_would_be_kept(tmp_path, score, kept):
    checkpoints = CheckpointStore(tmp_path, 2, {})
    checkpoints.submit(4, (0.9, -0.1), b"best")
    checkpoints.submit(5, (0.7, -0.5), b"good")
    assert checkpoints.would_keep(9, score) is kept


def test_while_there_is_room_anything_would_be_kept(tmp_path):
    checkpoints = CheckpointStore(tmp_path, 2, {})
    checkpoints.submit(4, (0.9, -0.1), b"best")
    assert checkpoints.would_keep(9, (0.0, -9.0))


def test_a_trial_does_not_compete_with_itself(tmp_path):
    checkpoints = CheckpointStore(tmp_path, 1, {})
    checkpoints.submit(4, (0.9, -0.1), b"once")
    assert checkpoints.would_keep(4, (0.9, -0.1))
    checkpoints.submit(4, (0.9, -0.1), b"again")
    assert kept_on_disk(tmp_path) == {4: b"again"}


def test_what_an_earlier_session_kept_is_deleted_when_beaten(tmp_path):
    for number in (4, 5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / BEST_WEIGHTS).write_bytes(b"earlier")
    # A resumed run knows the scores of all its trials, also of those without weights.
    earlier = {4: (0.9, -0.1), 5: (0.7, -0.5), 6: (0.99, -0.1)}
    checkpoints = CheckpointStore(tmp_path, 2, earlier)
    assert not checkpoints.would_keep(7, (0.6, -0.2))
    submit_all(checkpoints, {8: (0.8, -0.2)})
    assert kept_on_disk(tmp_path) == {4: b"earlier", 8: b"weights 8"}


@pytest.mark.parametrize("content", ['{"1": 2}', "[1]", '[[1, ["a", "b"]]]', "3", "[[1, [2]]]"])
def test_a_list_of_what_was_kept_of_a_wrong_shape_is_ignored(tmp_path, content):
    submit_all(CheckpointStore(tmp_path, 1, {}), {1: (0.95, -0.1)})
    for record in (content, f'{{"run_id": "", "kept": {content}}}'):
        (tmp_path / "kept.json").write_text(record)
        assert CheckpointStore(tmp_path, 1, {}).would_keep(2, (0.5, -0.1))


@pytest.mark.parametrize(
    "damaged", [b"", b"[[1, [0.9", b"[]", b'{"kept": 3}', b'{"kept": [[1e999, [0.9, 0.1]]]}']
)
def test_a_restarted_store_knows_what_was_kept(tmp_path, damaged):
    submit_all(CheckpointStore(tmp_path, 1, {}), {0: (0.9, -0.1), 1: (0.95, -0.1)})
    if damaged:
        (tmp_path / "kept.json").write_bytes(damaged)
    restarted = CheckpointStore(tmp_path, 1, {})  # by Ray, with the arguments of its start
    assert restarted.would_keep(2, (0.5, -0.1)) is bool(damaged)
    submit_all(restarted, {3: (0.99, -0.1)})
    assert 3 in kept_on_disk(tmp_path)
    assert (kept_on_disk(tmp_path).keys() == {3}) is not bool(damaged)


def test_what_another_run_kept_is_ignored(tmp_path):
    submit_all(CheckpointStore(tmp_path, 2, {}, "one"), {0: (0.9, -0.1), 1: (0.95, -0.1)})
    scores = {0: (0.5, -0.1)}
    assert CheckpointStore(tmp_path, 2, scores, "one").kept() == [0, 1]
    other = CheckpointStore(tmp_path, 2, scores, "two")
    assert other.kept() == []
    submit_all(other, {0: (0.5, -0.1)})
    assert CheckpointStore(tmp_path, 2, {}, "two").kept() == [0]


def test_a_crash_while_writing_leaves_the_old_weights(tmp_path, monkeypatch):
    checkpoints = CheckpointStore(tmp_path, 2, {})
    checkpoints.submit(0, (0.5, -1.0), b"whole")
    checkpoints.save(1, b"epoch 1")

    def crash(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.submit(0, (0.6, -1.0), b"newer")
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(1, b"epoch 2")
    assert kept_on_disk(tmp_path) == {0: b"whole"}
    assert checkpoints.load_last(1) == b"epoch 1"


def test_a_running_trial_has_one_checkpoint_until_it_ends(tmp_path):
    checkpoints = CheckpointStore(tmp_path, 1, {})
    assert checkpoints.load_last(3) is None
    checkpoints.save(3, b"epoch 1")
    checkpoints.save(3, b"epoch 2")
    checkpoints.submit(4, (0.9, -0.1), b"best")
    checkpoints.submit(3, (0.5, -0.1), b"worse")
    assert checkpoints.load_last(3) == b"epoch 2", "the trial still runs"
    assert CheckpointStore(tmp_path, 1, {}).load_last(3) == b"epoch 2"
    checkpoints.delete_checkpoint(3)
    checkpoints.delete_checkpoint(3)
    assert checkpoints.load_last(3) is None


@pytest.mark.parametrize("in_storage", [False, True])
def test_checkpoints_of_ended_trials_that_a_killed_session_left_are_deleted(
    tmp_path, ray_session, in_storage
):
    home = tmp_path / "run" / "trials"
    shared = SharedFiles(str(tmp_path / "storage"), "run").within("trials") if in_storage else None
    checkpoints = start_checkpoint_store(home, 1, {}, shared)
    for number in (2, 3, 4):
        checkpoints.save(number, b"epoch 1")
    checkpoints.delete_left_over(home, [0, 2, 4])
    ray.get(checkpoints.actor.kept.remote())  # after what it was asked before
    found = [checkpoints.load_last(number) for number in range(5)]
    assert found == [None, None, None, b"epoch 1", None]


def test_weights_in_shared_storage_are_downloaded(tmp_path, ray_session):
    shared = SharedFiles(str(tmp_path / "storage"), "run").within("trials")
    home = tmp_path / "run" / "trials"
    checkpoints = start_checkpoint_store(home, 1, {}, shared)
    checkpoints.save(0, b"epoch 1")
    checkpoints.submit(0, (0.5, -1.0), b"good")
    checkpoints.submit(1, (0.9, -1.0), b"better")
    assert checkpoints.would_keep(2, (0.6, -1.0)) is False
    assert checkpoints.load_last(0) == b"epoch 1"
    assert kept_on_disk(tmp_path / "storage") == {1: b"better"}
    assert not home.exists(), "nothing passes through the driver"
    checkpoints.download_best(home)
    assert kept_on_disk(home) == {1: b"better"}
    checkpoints.delete_checkpoint(0)
    again = start_checkpoint_store(home, 1, {1: (0.9, -1.0)}, shared)
    assert again.would_keep(2, (0.6, -1.0)) is False, "what an earlier session kept is known"
    assert again.load_last(0) is None
