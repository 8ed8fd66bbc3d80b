import pytest

from search.evaluation.sample_size import few_images_warnings, small_class_warnings

TAKE_MORE = "take more images, or read the cross-validation accuracy"


def counts(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


def test_enough_images_need_no_warning():
    assert few_images_warnings({"cat": counts(70, 25, 15), "dog": counts(70, 25, 15)}) == []


def test_one_image_less_is_too_few():
    found = few_images_warnings({"cat": counts(70, 24, 15), "dog": counts(70, 25, 14)}, 29)
    assert [text.split(":")[0] for text in found] == [
        "29 test images, fewer than 30",
        "49 validation images, fewer than 50",
    ]
    assert len(few_images_warnings({"cat": counts(4, 3, 3), "dog": counts(999, 99, 99)})) == 0
    assert len(few_images_warnings({"cat": counts(4, 3, 2), "dog": counts(999, 99, 99)})) == 1


@pytest.mark.parametrize(
    ("n_correct", "text"),
    [
        (None, "even with all of them correct the accuracy could be anywhere between 51% and 100%"),
        (4, "the accuracy could be anywhere between 51% and 100%"),
        (3, "the accuracy could be anywhere between 30% and 95%"),
    ],
)
def test_sixteen_images(n_correct, text):
    test, val, classes = few_images_warnings(
        {"cat": counts(4, 2, 2), "dog": counts(4, 2, 2)}, n_correct
    )
    assert test == f"4 test images, fewer than 30: {text} (95% CI); {TAKE_MORE}"
    assert val == (
        "4 validation images, fewer than 50: one image is 25 points of validation accuracy, so that"
        f" it cannot tell similar trials apart; {TAKE_MORE}"
    )
    assert classes == (
        "2 classes have fewer than 10 images: 'cat' 8, 'dog' 8; recall, precision and F1 of such a"
        " class say little (at most 2 test images each); take more images of it"
    )


def test_the_smallest_classes_are_named():
    (text,) = small_class_warnings({f"c{n}": {"train": n} for n in range(4, 12)})
    assert text.startswith("6 classes have fewer than 10 images: 'c4' 4, 'c5' 5, 'c6' 6 and 3 more")
    assert "test image" not in text


def test_excluded_images_do_not_count():
    (text,) = small_class_warnings({"cat": {"train": 8, "excluded": 5}, "dog": counts(8, 1, 1)})
    assert text.startswith("1 class has fewer than 10 images: 'cat' 8; ")
