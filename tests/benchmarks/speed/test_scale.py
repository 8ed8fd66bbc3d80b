from benchmarks.speed.scale import list_schedule


def test_a_list_schedule_gives_the_next_job_to_the_first_free_worker() -> None:
    assert list_schedule([3, 1, 1, 1], 2) == 3
    assert list_schedule([1, 1, 1, 3], 2) == 4
    assert list_schedule([], 2) == 0
