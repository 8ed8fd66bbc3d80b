import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from search.tuning.timing.after_trials import CLOSING_SECONDS, FOLD_SECONDS, AfterTrials
from search.tuning.timing.time_left import CLOSING, FOLDS, TRIALS, Budget, TimeLeft
from spaces.base import Space
from spaces.sources import folder
from trainables.trial_result import TrialResult

SPACE = Space(
    source=folder(),
    params={
        "backbone": "tinynet",
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "freeze_depth": IntDistribution(0, 5),
    },
    image_size=32,
    epochs=10,
    trials=8,
    folds=4,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def after_trials(slots: int = 2, n_evaluated: int = 0) -> AfterTrials:
    return AfterTrials(
        SPACE, 200, 1.5, lambda _: slots, {"tinynet": 0.03}, n_evaluated, has_probe=False
    )


def create(
    clock: Clock,
    n_trials: int | None = 4,
    slots: int = 2,
    budget: Budget | None = None,
    n_finalists: int = 1,
    n_evaluated: int = 0,
) -> TimeLeft:
    after = after_trials(slots, n_evaluated)
    probes = ["tinynet"]
    return TimeLeft(
        SPACE, n_trials, lambda: slots, after, n_finalists, probes, budget=budget, now=clock
    )


def epochs(
    clock: Clock, left: TimeLeft, number: int, depth: int, n: int, seconds: float, score: float
) -> None:
    """Train a trial for n epochs of so many seconds each, with nothing beside it."""
    left.trial_started(number, {"lr": 1e-3, "freeze_depth": depth})
    clock.now += n * seconds
    result = TrialResult(epoch=n, best_val_score=score, trained_seconds=n * seconds)
    left.trial_epoch(number, result)


def test_nothing_is_known_before_the_first_epoch(clock: Clock) -> None:
    left = create(clock)
    assert left.parts() == {}
    left.trial_started(0, {"lr": 1e-3, "freeze_depth": 5})
    assert left.parts() == {}


def test_trials_take_what_their_epochs_take_at_their_depth(clock: Clock) -> None:
    left = create(clock, n_trials=4, slots=1)
    epochs(clock, left, 0, 5, 10, 1.0, 0.9)
    left.trial_ended(0, "complete", TrialResult())
    epochs(clock, left, 1, 3, 5, 4.0, 0.8)
    # The second is in its fifth of ten epochs; two more take what these two do in the mean.
    rest, means = 20.0, (10.0 + 40.0) / 2
    assert left.parts()[TRIALS] == pytest.approx(rest + 2 * means)
    clock.now += 8.0
    assert left.parts()[TRIALS] == pytest.approx(rest + 2 * means - 8.0), "time goes on"


def test_a_depth_between_two_others_takes_a_time_between_theirs(clock: Clock) -> None:
    left = create(clock, n_trials=3, slots=1)
    for number, depth, seconds in ((0, 5, 1.0), (1, 1, 5.0)):
        epochs(clock, left, number, depth, 10, seconds, 0.5)
        left.trial_ended(number, "complete", TrialResult())
    left.trial_started(2, {"lr": 1e-3, "freeze_depth": 3})
    assert left.parts()[TRIALS] == pytest.approx(30.0)


def test_pruned_trials_make_those_to_come_shorter(clock: Clock) -> None:
    left = create(clock, n_trials=11, slots=1)
    for number in range(10):
        n = 10 if number == 0 else 2
        epochs(clock, left, number, 5, n, 1.0, 0.5)
        left.trial_ended(number, "complete" if number == 0 else "pruned", TrialResult())
    assert left.parts()[TRIALS] == pytest.approx((10 + 9 * 2) / 10)


def test_folds_are_those_of_the_likely_finalists(clock: Clock) -> None:
    left = create(clock, n_trials=3, slots=2)
    epochs(clock, left, 0, 5, 10, 1.0, 0.7)  # the baseline
    epochs(clock, left, 1, 5, 10, 1.0, 0.9)  # the best
    epochs(clock, left, 2, 2, 10, 6.0, 0.8)  # the best fine-tuned one
    rounds = 2
    trained = sum(FOLD_SECONDS + 10 * 1.5 * seconds for seconds in (1.0, 1.0, 6.0))
    assert left.parts()[FOLDS] == pytest.approx(rounds * (FOLD_SECONDS + trained))


def test_a_probes_folds_count_as_the_moment_that_they_take(clock: Clock) -> None:
    """Ten of fifteen folds were counted as ten fifteenths, though a probe's take two seconds."""
    left = create(clock, slots=2)
    epochs(clock, left, 0, 2, 10, 6.0, 0.8)
    left.begin_folds([(None, 0), (0, 10)])
    whole = left.parts(0)[FOLDS]
    clock.now += 2.0
    assert left.parts(4)[FOLDS] == pytest.approx(whole - 2 * FOLD_SECONDS), "a probe tells no pace"
    clock.now += 200.0
    half = left.parts(6)[FOLDS]
    done, rest = 2 * FOLD_SECONDS + 91.0, 91.0
    prior = 0.2 * (done + rest)
    pace = (202.0 + prior) / (done + prior)
    assert half == pytest.approx(rest * pace), "the measured pace is that of the rest"
    left.begin_closing()
    assert left.parts(8) == {CLOSING: CLOSING_SECONDS}


def test_a_time_budget_bounds_the_search(clock: Clock) -> None:
    left = create(clock, None, budget=Budget(lambda: 95.0, lambda: 40.0))
    epochs(clock, left, 0, 5, 5, 1.0, 0.8)
    reserved = {FOLDS: 40.0 - CLOSING_SECONDS, CLOSING: CLOSING_SECONDS}
    assert left.parts() == {TRIALS: 55.0, **reserved}
    left.begin_folds([(0, 500)])
    assert left.parts(1) == {FOLDS: 95.0 - CLOSING_SECONDS, CLOSING: CLOSING_SECONDS}


def test_a_last_trial_bounds_a_run_that_has_a_time_budget(clock: Clock) -> None:
    """Runs in which nothing was to be gained announced the end of their budget, and ended early."""
    left = create(clock, 2, slots=1, budget=Budget(lambda: 900.0, lambda: 100.0))
    epochs(clock, left, 0, 5, 10, 1.0, 0.8)
    left.trial_ended(0, "complete", TrialResult())
    assert left.parts()[TRIALS] == pytest.approx(10.0)
    folds = 4 * (FOLD_SECONDS + 10 * 1.5) + 4 * FOLD_SECONDS
    assert left.parts()[FOLDS] == pytest.approx(folds), "what is reserved for more is not announced"
    tight = create(clock, 2, slots=1, budget=Budget(lambda: 900.0, lambda: 40.0))
    epochs(clock, tight, 0, 5, 10, 1.0, 0.8)
    assert tight.parts()[FOLDS] == 40.0 - CLOSING_SECONDS, "others are left out"


def test_trials_that_take_longer_than_their_epochs_are_expected_to_go_on_like_that(
    clock: Clock,
) -> None:
    left = create(clock, n_trials=4, slots=1)
    for number in range(2):
        epochs(clock, left, number, 5, 10, 1.0, 0.5)
        clock.now += 10.0  # nothing is trained
        left.trial_ended(number, "complete", TrialResult())
    took, trained, rest = 40.0, 20.0, 20.0
    prior = 0.2 * (trained + rest)
    assert left.parts()[TRIALS] == pytest.approx(rest * (took + prior) / (trained + prior))


def test_all_finalists_that_are_asked_for_are_expected(clock: Clock) -> None:
    one, three = create(clock, n_trials=9), create(clock, n_trials=9, n_finalists=3)
    for left in (one, three):
        for number in range(4):
            epochs(clock, left, number, 5, 10, 1.0, 0.5 + number / 10)
    assert three.parts()[FOLDS] - one.parts()[FOLDS] == pytest.approx(2 * 2 * (FOLD_SECONDS + 15.0))


def test_evaluation_is_by_images_and_the_latency_of_what_is_evaluated(clock: Clock) -> None:
    parts = []
    for n in (100, 1100):
        left = create(clock, n_trials=2, n_evaluated=n)
        epochs(clock, left, 0, 5, 10, 1.0, 0.7)
        left.trial_ended(0, "complete", TrialResult())
        epochs(clock, left, 1, 3, 10, 1.0, 0.9)
        parts.append(left.parts()[CLOSING])
    # Of the model the three frozen stages run once and the others four times; the baseline's head
    # costs nothing; each image of up to 1,000 is in the projector.
    networks = (3 + 4 * 2) / 5 + 1
    assert parts[1] - parts[0] == pytest.approx(0.03 * (1000 * networks + 900))
