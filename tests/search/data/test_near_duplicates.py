import numpy as np
import pytest

from search.cluster.parallel import ray_map, thread_map
from search.data import near_duplicates
from search.data.near_duplicates import TURNS, find_near_duplicates, groups_of
from search.data.thumbnails import SIDE
from tests.fixtures.drawing import CHANGES, draw, make_thumbnails

HOW = {
    "mirrored": "a mirrored copy",
    "upside down": "a copy upside down",
    "flipped": "a copy upside down, mirrored",
    **dict.fromkeys(("turned left", "turned right"), "a copy turned by 90°"),
    **dict.fromkeys(("transposed", "transversed"), "a copy turned by 90°, mirrored"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change):
    originals = [draw(seed) for seed in range(40)]
    copies = [CHANGES[change](image) for image in originals]
    made = find_near_duplicates(make_thumbnails(originals + copies), flip=True)
    planted = {(row, row + 40) for row in range(40)}
    found = set(map(tuple, made.pairs.tolist()))
    assert found <= planted
    assert len(found) >= 39
    how = {TURNS[turn].how for turn in made.turn.tolist()}
    assert how == {HOW.get(change, "a changed copy")}


@pytest.mark.parametrize("change", HOW)
def test_mirrored_and_turned_copies_count_only_where_flips_are_allowed(change):
    both = make_thumbnails([draw(0), CHANGES[change](draw(0))])
    assert len(find_near_duplicates(both, flip=True).pairs) == 1
    assert len(find_near_duplicates(both, flip=False).pairs) == 0


def test_equal_thumbnails_are_paired_with_the_first():
    thumbnails = make_thumbnails([draw(seed) for seed in (1, 0, 0, 2, 0)])
    found = find_near_duplicates(thumbnails, flip=True)
    assert found.pairs.tolist() == [[1, 2], [1, 4]]
    assert found.similarity.tolist() == [1, 1]


def test_blank_images_have_no_near_duplicates():
    white = draw(0).point(lambda value: 255)
    found = find_near_duplicates(make_thumbnails([white, white, draw(0)]), flip=True)
    assert len(found.pairs) == 0
    assert found.blank.tolist() == [True, True, False]


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair_among_too_few(n):
    thumbnails = make_thumbnails([draw(seed) for seed in range(n)])
    assert len(find_near_duplicates(thumbnails, flip=True).pairs) == 0


def test_small_images_are_near_duplicates_only_where_they_are_nearly_equal():
    small = [draw(seed).resize((28, 28)) for seed in range(30)]
    smaller = [image.resize((14, 14)) for image in small]
    assert len(find_near_duplicates(make_thumbnails(small + smaller), flip=True).pairs) == 0
    grayscale = [CHANGES["grayscale"](image) for image in small]
    assert len(find_near_duplicates(make_thumbnails(small + grayscale), flip=True).pairs) == 30


@pytest.mark.parametrize("parallel_map", [thread_map, ray_map])
def test_comparing_in_parallel_finds_the_same(ray_session, monkeypatch, parallel_map):
    originals = [draw(seed) for seed in range(20)]
    thumbnails = make_thumbnails(originals + [CHANGES["grayscale"](image) for image in originals])
    serial = find_near_duplicates(thumbnails, flip=True)
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 5)
    monkeypatch.setattr(near_duplicates, "BLOCK_PAIRS", 4)
    found = find_near_duplicates(thumbnails, flip=True, parallel_map=parallel_map)
    np.testing.assert_array_equal(found.pairs, serial.pairs)
    np.testing.assert_allclose(found.similarity, serial.similarity, atol=1e-5)


def test_groups_are_what_pairs_link():
    pairs = np.array([[1, 4], [4, 5], [2, 3]])
    assert groups_of(7, pairs).tolist() == [0, 1, 2, 2, 1, 1, 6]
    assert groups_of(3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 2]
    assert SIDE % 2 == 0
