from search.reporting.model_figures import (
    draw_accuracies,
    draw_confusion,
    draw_reliability,
)


def test_only_cells_with_images_are_drawn_and_each_is_counted() -> None:
    figure = draw_confusion([[8, 2], [0, 10]], ["cat", "$dog"], "title")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["8", "2", "10"]
    assert [round(float(cell.get_alpha()), 2) for cell in axes.patches] == [0.8, 0.2, 1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "$dog"]


def test_a_class_without_images_is_no_error() -> None:
    draw_confusion([[0, 0], [1, 3]], ["cat", "dog"], "title")


def test_large_matrices_have_no_numbers() -> None:
    n = 40
    matrix = [[int(i == j) for i in range(n)] for j in range(n)]
    (axes,) = draw_confusion(matrix, [str(i) for i in range(n)], "title").axes
    assert len(axes.texts) == 0
    assert len(axes.patches) == n


def test_reliability_counts_the_images_of_each_bin() -> None:
    (axes,) = draw_reliability([0.95, 0.99, 1.0, 0.35], [True, True, True, False]).axes
    assert [text.get_text() for text in axes.texts] == ["1", "3"]


def test_each_source_of_the_accuracy_has_a_row() -> None:
    (axes,) = draw_accuracies(1.0, [0.9, 0.95], {"held-out images": (0.92, (0.88, 0.95))}).axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["the search said", "folds say", "held-out images"]
