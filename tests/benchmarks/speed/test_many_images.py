from pathlib import Path

from benchmarks.speed import many_images


def test_the_timed_functions_exist() -> None:
    for module, function in many_images.STEPS.values():
        assert callable(getattr(module, function))


def test_generated_images_have_their_own_names_and_all_differ(tmp_path: Path) -> None:
    n_bytes = many_images.generate(tmp_path, 60, 16, 20)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == len({file.name for file in files}) == 60
    assert len({file.read_bytes() for file in files}) == 60
    assert sum(file.stat().st_size for file in files) == n_bytes
    assert len({file.parent for file in files}) == 20
