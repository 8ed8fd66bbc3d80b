import numpy as np
import pytest

from search.cluster.parallel import on_all_cores, on_all_machines
from search.data import near_duplicates
from search.data.near_duplicates import find_twins, groups_of
from search.data.registration import align, zoom
from search.data.thumbnails import SIDE
from tests.fixtures.drawing import CHANGES, draw, sketched


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change):
    originals = [draw(seed) for seed in range(40)]
    copies = [CHANGES[change](image) for image in originals]
    made = find_twins(sketched(originals + copies), flip=True)
    planted = {(row, row + 40) for row in range(40)}
    found = set(map(tuple, made.pairs.tolist()))
    assert found <= planted
    assert len(found) >= 39
    assert made.mirrored.all() == (change == "mirrored")
    assert made.mirrored.any() == (change == "mirrored")


def test_mirror_images_count_only_where_flips_are_allowed():
    both = sketched([draw(0), CHANGES["mirrored"](draw(0))])
    assert len(find_twins(both, flip=True).pairs) == 1
    assert len(find_twins(both, flip=False).pairs) == 0


def test_equal_sketches_are_paired_with_the_first():
    found = find_twins(sketched([draw(1), draw(0), draw(0), draw(2), draw(0)]), flip=True)
    assert found.pairs.tolist() == [[1, 2], [1, 4]]
    assert found.similarity.tolist() == [1, 1]


def test_blank_pictures_are_like_nothing():
    white = draw(0).point(lambda value: 255)
    found = find_twins(sketched([white, white, draw(0)]), flip=True)
    assert len(found.pairs) == 0
    assert found.blank.tolist() == [True, True, False]


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair_among_too_few(n):
    assert len(find_twins(sketched([draw(seed) for seed in range(n)]), flip=True).pairs) == 0


def test_small_pictures_are_near_duplicates_only_where_they_are_nearly_equal():
    small = [draw(seed).resize((28, 28)) for seed in range(30)]
    likes = [image.resize((14, 14)) for image in small]
    assert len(find_twins(sketched(small + likes), flip=True).pairs) == 0
    greys = [CHANGES["grey"](image) for image in small]
    assert len(find_twins(sketched(small + greys), flip=True).pairs) == 30


@pytest.mark.parametrize("by", [on_all_cores, on_all_machines])
def test_comparing_in_small_parts_by_others_finds_the_same(ray_session, monkeypatch, by):
    originals = [draw(seed) for seed in range(20)]
    sketches = sketched(originals + [CHANGES["grey"](image) for image in originals])
    here = find_twins(sketches, flip=True)
    monkeypatch.setattr(near_duplicates, "_BLOCK_ROWS", 5)
    monkeypatch.setattr(near_duplicates, "_BLOCK_PAIRS", 4)
    spread = find_twins(sketches, flip=True, spread=by)
    np.testing.assert_array_equal(spread.pairs, here.pairs)
    np.testing.assert_allclose(spread.similarity, here.similarity, atol=1e-5)


def test_alignment_finds_the_map():
    sketches = sketched([draw(seed) for seed in range(20)]).pixels
    zoomed = zoom(sketches, 0.9)
    aligned = align(zoomed, sketches)
    assert (aligned.detail > 0.97).all()
    np.testing.assert_allclose(aligned.maps[:, 0, 0], 0.9, atol=0.01)
    np.testing.assert_allclose(aligned.maps[:, 0, 1:], 0, atol=0.01)
    others = align(sketches, np.roll(sketches, 1, axis=0))
    assert (others.detail < 0.8).all()


def test_groups_are_what_pairs_link():
    pairs = np.array([[1, 4], [4, 5], [2, 3]])
    assert groups_of(7, pairs).tolist() == [0, 1, 2, 2, 1, 1, 6]
    assert groups_of(3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 2]
    assert SIDE % 2 == 0
