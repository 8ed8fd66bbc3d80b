"""Say what accuracies of few images cannot say."""

from __future__ import annotations

from collections.abc import Mapping

from search.console.formatting import count, percent
from search.evaluation.intervals import wilson_interval

MIN_TEST_IMAGES = 30
"""With fewer, the 95% confidence interval of an accuracy of 90% is wider than 22 points."""

MIN_VALIDATION_IMAGES = 50
"""With fewer, one image is more than 2 points of the accuracy that ranks the trials."""

MIN_IMAGES_PER_CLASS = 10
"""In all splits together. With fewer, the test set has one or two of the class."""

_MAX_NAMED = 3

ClassCounts = Mapping[str, Mapping[str, int]]
"""By class, then by split ("train", "val", "test"), the number of images."""


def few_images_warnings(class_counts: ClassCounts, n_correct: int | None = None) -> list[str]:
    """Return what must be known before figures of so few images are trusted, one line for each.

    Args:
        class_counts: The images, at least one of them in the test set.
        n_correct: Test images that were predicted correctly; None before the test set is evaluated.
    """
    found = []
    n_test, n_val = (
        sum(splits.get(name, 0) for splits in class_counts.values()) for name in ("test", "val")
    )
    if n_test < MIN_TEST_IMAGES:
        low, high = wilson_interval(n_test if n_correct is None else n_correct, n_test)
        even_if = "even with all of them correct " if n_correct is None else ""
        found.append(
            f"{count(n_test, 'test image')}, fewer than {MIN_TEST_IMAGES}: {even_if}the accuracy"
            f" could be anywhere between {percent(low, 0)} and {percent(high, 0)} (95% CI); take"
            " more images, or read the cross-validation accuracy"
        )
    if n_val < MIN_VALIDATION_IMAGES:
        found.append(
            f"{count(n_val, 'validation image')}, fewer than {MIN_VALIDATION_IMAGES}: one image is"
            f" {100 / max(n_val, 1):.0f} points of validation accuracy, so that it cannot tell"
            " similar trials apart; take more images, or read the cross-validation accuracy"
        )
    return found + small_class_warnings(class_counts)


def small_class_warnings(class_counts: ClassCounts) -> list[str]:
    """Return one line about the classes of too few images; none where each has enough."""
    sizes = {
        name: sum(splits.get(split, 0) for split in ("train", "val", "test"))
        for name, splits in class_counts.items()
    }
    small = sorted((n, name) for name, n in sizes.items() if n < MIN_IMAGES_PER_CLASS)
    if not small:
        return []
    named = ", ".join(f"{name!r} {n}" for n, name in small[:_MAX_NAMED])
    more = f" and {len(small) - _MAX_NAMED} more" if len(small) > _MAX_NAMED else ""
    have = "1 class has" if len(small) == 1 else f"{len(small)} classes have"
    n_test = max(class_counts[name].get("test", 0) for _, name in small)
    rest = f" (at most {count(n_test, 'test image')} each)" if n_test else ""
    return [
        f"{have} fewer than {MIN_IMAGES_PER_CLASS} images: {named}{more}; recall, precision and F1"
        f" of such a class say little{rest}; take more images of it"
    ]
