import numpy as np

from search.data.manifest import Manifest, seeded_order


def test_seeded_order_is_a_fixed_shuffle() -> None:
    names = [f"{i}.jpg" for i in range(1000)]
    order = seeded_order(names, 0, "x")
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    # The same on every machine and in every version:
    assert seeded_order(names[:3], 0, "split").tolist() == [1, 0, 2]
    assert seeded_order(names, 1, "x").tolist() != order.tolist()
    assert seeded_order(names, 0, "y").tolist() != order.tolist()
    without = [names[i] for i in order if i != 500]
    fewer = [name for name in names if name != "500.jpg"]
    assert [fewer[i] for i in seeded_order(fewer, 0, "x")] == without


def test_classes_whose_names_hardly_differ_are_named() -> None:
    classes = ("Cat", "cat", "dog", "hot dog", "Hot-dog ", "-", "_")
    manifest = Manifest(classes, ("a",), np.zeros(1, np.int64), (None,), (), None)
    only = "are different classes, though they differ in case, spaces or hyphens only"
    assert manifest.describe()[2:] == [f"'Cat', 'cat' {only}", f"'hot dog', 'Hot-dog ' {only}"]
