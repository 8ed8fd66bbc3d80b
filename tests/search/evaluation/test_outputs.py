import numpy as np
import pytest

from search.evaluation.outputs import Outputs, load_outputs

PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)


def outputs(**more: object) -> Outputs:
    return Outputs("a", PROBABILITIES, PROBABILITIES / 2, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "ood_score": np.array([0.5, 1.5, 2.5], np.float32),
            "baseline": "b",
            "baseline_classes": np.array([0, 1, 1]),
        },
    ],
)
def test_outputs_are_read_as_they_were_written(tmp_path, more):
    outputs(**more).save(tmp_path / "outputs")
    found = load_outputs(tmp_path / "outputs", 3)
    expected = vars(outputs(**more))
    assert found is not None
    assert vars(found).keys() == expected.keys()
    for name, value in vars(found).items():
        np.testing.assert_array_equal(value, expected[name])
        assert getattr(value, "dtype", None) == getattr(expected[name], "dtype", None)


def test_only_a_whole_file_is_read(tmp_path):
    path = tmp_path / "outputs"
    assert load_outputs(path, 3) is None
    outputs().save(path)
    assert load_outputs(path, 4) is None
    content = path.read_bytes()
    for n_bytes in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:n_bytes])
        assert load_outputs(path, 3) is None
    path.write_bytes(content.replace(PROBABILITIES.tobytes(), bytes(PROBABILITIES.nbytes)))
    assert load_outputs(path, 3) is None, "a changed number is noticed"
    for write in (lambda file: np.savez(file, other=PROBABILITIES), lambda file: np.save(file, 1)):
        with path.open("wb") as file:
            write(file)
        assert load_outputs(path, 3) is None


def test_a_file_with_any_changed_byte_is_none_or_as_it_was(tmp_path):
    path = tmp_path / "outputs"
    outputs().save(path)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        found = load_outputs(path, 3)
        assert found is None or (found.probabilities == PROBABILITIES).all()


def test_tables_of_other_classes_are_none(tmp_path):
    path = tmp_path / "outputs"
    for one, two in ((PROBABILITIES[:, :1], PROBABILITIES), (PROBABILITIES[0], PROBABILITIES[0])):
        Outputs("a", one, two).save(path)
        assert load_outputs(path, len(one)) is None


def test_outputs_are_of_one_model_and_one_baseline():
    compared = outputs(baseline="b", baseline_classes=np.array([0, 1, 1]))
    assert compared.are_of("a", "b")
    assert compared.are_of("a", None)
    assert not compared.are_of("a", "c")
    assert not compared.are_of("b", "b")
    assert outputs().are_of("a", None)
    assert not outputs().are_of("a", "b")
