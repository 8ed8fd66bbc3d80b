from benchmarks.harness.reporting import ROOT
from benchmarks.speed import vs_ray_tutorial


def test_configurations_are_spread_over_the_depths_and_keep_their_order() -> None:
    configs = [{"freeze_depth": depth, "id": i} for i, depth in enumerate([0, 0, 0, 5, 5, 3])]
    chosen = vs_ray_tutorial.spread_over_depths(configs, 3)
    assert [config["id"] for config in chosen] == [0, 3, 5]
    assert vs_ray_tutorial.spread_over_depths(configs, 6) == configs


def test_configurations_are_the_same_every_time() -> None:
    work = vs_ray_tutorial.Work(24, 24, 8, 5, 224, None, ROOT, None, "", 2)
    configs = vs_ray_tutorial.draw_configs(work)
    assert configs == vs_ray_tutorial.draw_configs(work)
    assert len(configs) == 24
    assert {config["backbone"] for config in configs} == {"squeezenet1_0"}
    assert {config["freeze_depth"] for config in configs} == set(range(6))


def side(epoch_seconds: dict[int, list[list[float]]]) -> vs_ray_tutorial.Side:
    pairs = [(depth, each) for depth, trials in epoch_seconds.items() for each in trials]
    return vs_ray_tutorial.Side(
        0, 0, [{"freeze_depth": depth} for depth, _ in pairs], [each for _, each in pairs], 1, 1
    )


def test_extrapolation_is_our_epochs_times_their_seconds() -> None:
    work = vs_ray_tutorial.Work(4, 2, 8, 5, 224, None, ROOT, None, "", max_concurrent=2)
    ours = side({0: [[1, 1, 1], [1]], 5: [[1], [1]]})
    theirs = side({0: [[100, 110, 120]], 5: [[10]]})
    # One of two trials remains at each depth: half of our 4 epochs at 110 s, half of our 2 at 10 s.
    assert vs_ray_tutorial.extrapolate_seconds(work, ours, theirs) == (2 * 110 + 1 * 10) / 2
