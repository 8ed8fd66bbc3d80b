import numpy as np
import torch

from search.evaluation.predictions import Predictions
from search.reporting.tensorboard.image_grid import (
    N_DRAWS,
    RIGHT,
    SIDE,
    UNKNOWN,
    WRONG,
    Tile,
    augmented_tiles,
    draw_grid,
    predicted_tiles,
    stratified_rows,
    top_loss_tiles,
)

CLASSES = ("ant", "bee", "cow", "dog")
PROBABILITIES = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],  # right
        [0.6, 0.4, 0.0, 0.0],  # wrong: a bee
        [0.05, 0.9, 0.03, 0.02],  # wrong: a cow
        [0.0, 0.1, 0.1, 0.8],  # right
        [0.4, 0.3, 0.2, 0.1],  # no label
    ],
    np.float32,
)


def predictions() -> Predictions:
    """Five images, each all of its own number; they lie in the table in another order."""
    rows = np.array([4, 2, 0, 1, 3])
    table = torch.zeros(5, 8, 8, 3, dtype=torch.uint8)
    table[torch.from_numpy(rows)] = torch.arange(5, dtype=torch.uint8).view(-1, 1, 1, 1)
    names = [f"{i}.jpg" for i in range(5)]
    return Predictions(names, table, rows, np.array([0, 1, 2, 3, -1]), PROBABILITIES, CLASSES)


def shown(tiles: list[Tile]) -> list[int]:
    return [int(tile.pixels[0, 0, 0]) for tile in tiles]


def test_wrong_predictions_come_most_confident_first_and_then_the_least_confident() -> None:
    tiles = top_loss_tiles(predictions())
    assert shown(tiles) == [2, 1, 0, 3]
    assert [tile.frame for tile in tiles] == [WRONG, WRONG, RIGHT, RIGHT]
    assert tiles[0].lines == ("predicted: bee 90%", "label: cow")


def test_external_images_have_their_top_3_predictions() -> None:
    tiles = predicted_tiles(predictions())
    assert shown(tiles) == [1, 2, 4, 0, 3]
    assert [tile.frame for tile in tiles] == [WRONG, WRONG, UNKNOWN, RIGHT, RIGHT]
    assert tiles[0].lines == ("ant: 60%", "bee: 40%", "cow: 0%", "label: bee")
    assert len(tiles[2].lines) == 3


def test_augmented_images_follow_the_image_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 40, 40, 3), generator=generator, dtype=torch.uint8)
    tiles = augmented_tiles(images, 0.6, 32, flip=True)
    assert len(tiles) == 2 * (1 + N_DRAWS)
    for place, image in ((0, images[0]), (1 + N_DRAWS, images[1])):
        assert np.array_equal(tiles[place].pixels, image[4:36, 4:36].numpy())
        for tile in tiles[place + 1 : place + 1 + N_DRAWS]:
            assert np.abs(tile.pixels.astype(int) - tiles[place].pixels).mean() > 1


def test_stratified_rows_have_the_class_frequencies() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    rows = stratified_rows(labels, 10)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 2]
    assert stratified_rows(labels[:4], 10).tolist() == [0, 1, 2, 3]


def test_a_grid_has_room_for_all_its_text() -> None:
    tile = Tile(
        np.full((8, 8, 3), 200, np.uint8),
        ("predicted: a class of a very long name", "label"),
        WRONG,
    )
    one, three = draw_grid([tile], 1), draw_grid([tile] * 3, 2)
    assert one.width > SIDE
    assert one.height > SIDE + 2 * 12
    assert three.height > 1.8 * one.height
    colours = {colour for _, colour in three.getcolors(1 << 20) or []}
    assert (200, 200, 200) in colours
    assert (0xB3, 0x26, 0x1D) in colours
