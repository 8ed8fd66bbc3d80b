from pathlib import Path

import numpy as np
import pytest

from search.data.exclusion import Exclusion, read_exclusion, write_exclusion
from search.data.image_files import DataError

NAMES = ("a/1.jpg", "a/2, 3.jpg", "b/ü.jpg")


def read(tmp_path: Path, text: str) -> tuple[str, ...]:
    (tmp_path / "list").write_text(text, encoding="utf-8")
    return read_exclusion(tmp_path / "list").names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a/1.jpg\n\nb/ü.jpg\r\na/1.jpg\n", ("a/1.jpg", "b/ü.jpg")),
        ("a/2, 3.jpg\n", ("a/2, 3.jpg",)),
        (
            'image,issue,detail,duplicate_of,similarity\n"a/2, 3.jpg",grayscale,,,\n'
            ",imbalance,x,,\n",
            ("a/2, 3.jpg",),
        ),
        ("image,given_label,predicted_label,label_quality\nb/ü.jpg,b,a,0.9\n", ("b/ü.jpg",)),
        (
            "issue, Image\r\nx,a/1.jpg,more,cells\r\nfewer\r\nx,NA\r\nx,007",
            ("a/1.jpg", "NA", "007"),
        ),
    ],
)
def test_lists_and_tables_are_read(tmp_path, text, names):
    assert read(tmp_path, text) == names


def test_a_list_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("search.data.exclusion._MAX_BYTES", 10_000_000)
    with pytest.raises(DataError, match="must name a file of at most 10 MB, but /dev/zero is larg"):
        read_exclusion(Path("/dev/zero"))


def test_named_images_are_excluded(tmp_path):
    exclusion = Exclusion(tmp_path, ("a/1.jpg", "external:x.jpg", "notes.txt"))
    assert exclusion.remaining(NAMES, skipped=("notes.txt",)).tolist() == [1, 2]
    assert exclusion.remaining(("a/1.jpg", "x.jpg"), external=True).tolist() == [0]


def test_an_unknown_name_is_reported_with_the_nearest(tmp_path):
    with pytest.raises(DataError) as error:
        Exclusion(Path("my.csv"), ("a/11.jpg",)).remaining(NAMES)
    assert str(error.value) == (
        "--exclude must name the images by their paths below the folder (such as 'a/1.jpg'), but"
        " my.csv names 'a/11.jpg'; did you mean 'a/1.jpg'?: correct the lines, or remove them;"
        " an external image's name begins with 'external:'"
    )
    of_a_resumed_run = Exclusion(Path("my.csv"), ("a/11.jpg",), must_exist=False)
    assert of_a_resumed_run.remaining(NAMES).tolist() == [0, 1, 2]


def test_a_file_without_names_and_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="names none: remove the option, or give another file"):
        read(tmp_path, "image,issue\n")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_exclusion(tmp_path / "nowhere")


def test_names_round_trip(tmp_path):
    odd = (
        *('a, "b"/мяу.jpg', "c/1\n2.jpg", "c/\udcff.jpg", "external:#1.jpg"),
        *("NA", "nan", "None", "1e5", "007", " leading", "#1"),
    )
    write_exclusion(tmp_path / "excluded.csv", Exclusion(tmp_path, odd))
    assert read_exclusion(tmp_path / "excluded.csv").names == odd
    write_exclusion(tmp_path / "none.csv", Exclusion(tmp_path, ()))
    assert read_exclusion(tmp_path / "none.csv", must_exist=False).names == ()
    assert np.array_equal(Exclusion(tmp_path, ()).remaining(NAMES), np.arange(3))
