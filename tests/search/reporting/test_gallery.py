import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.reporting.gallery import SIDE, EmbeddedImages, Gallery, overlay


def photo(side: int = 256, seed: int = 0) -> np.ndarray:
    """A smooth image with a white frame of 16 pixels."""
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    pixels = np.array(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
    pixels[:16] = pixels[-16:] = pixels[:, :16] = pixels[:, -16:] = 255
    return pixels


def opened(content: bytes | None) -> np.ndarray:
    assert content is not None
    return np.asarray(Image.open(io.BytesIO(content)), np.int16)


def test_a_saved_image_is_what_the_model_sees_and_small(tmp_path: Path) -> None:
    pixels = photo()
    Gallery(tmp_path).save("data", ["cat/1.jpg"], [pixels], image_size=224)
    content = Gallery(tmp_path).find("data", "cat/1.jpg")
    shown = opened(content)
    assert shown.shape == (SIDE, SIDE, 3)
    assert content is not None
    assert len(content) < 10_000
    # The frame lies outside the crop that the model sees.
    seen = Image.fromarray(pixels[16:-16, 16:-16]).resize((SIDE, SIDE))
    assert np.abs(shown - np.asarray(seen, np.int16)).mean() < 4


def test_images_smaller_than_a_thumbnail_keep_their_pixels(tmp_path: Path) -> None:
    pixels = photo()[60:92, 60:92]
    Gallery(tmp_path).save("data", ["7"], [pixels], image_size=28)
    shown = opened(Gallery(tmp_path).find("data", "7"))
    assert shown.shape == (28, 28, 3)
    assert np.abs(shown - pixels[2:-2, 2:-2]).mean() < 2


def test_parts_and_odd_names_are_distinguished(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    names = ["a.jpg", "../../a.jpg", "<b>.jpg", "\udcff.jpg", "x" * 5000]
    for seed, name in enumerate(names):
        gallery.save("data", [name], [photo(seed=seed)], 224)
        gallery.save("external", [name], [photo(seed=100 + seed)], 224)
    found = {gallery.find(part, name) for part in ("data", "external") for name in names}
    assert len(found) == 10
    assert all(path.parent.parent == tmp_path / "gallery" for path in tmp_path.rglob("*.jpg"))
    # In a table read back, a byte that is no UTF-8 is a replacement mark.
    assert gallery.find("data", "\ufffd.jpg") == gallery.find("data", "\udcff.jpg")


def test_an_image_that_is_not_saved_is_none(tmp_path: Path) -> None:
    assert Gallery(tmp_path).find("data", "cat/1.jpg") is None
    assert EmbeddedImages(Gallery(tmp_path), 10_000).source("data", "cat/1.jpg") is None


def test_an_unknown_part_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part must be one of data, external, but got 'test'"):
        Gallery(tmp_path).find("test", "a.jpg")


def test_embedding_stops_at_its_budget(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    names = [f"{i}.jpg" for i in range(10)]
    gallery.save("data", names, [photo(seed=i) for i in range(10)], 224)
    images = EmbeddedImages(gallery, budget_bytes=20_000)
    sources = [images.source("data", name) for name in names]
    given = [source for source in sources if source]
    assert 0 < sum(map(len, given)) <= 20_000
    assert images.n_omitted == 10 - len(given) > 0
    kind, content = given[0].split(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(content) == gallery.find("data", "0.jpg")


def test_a_heat_map_is_saved_beside_its_image(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    heatmap = np.array([[0.0, 0.5], [0.25, 1.0]])
    gallery.save_heatmap("data", "a.jpg", heatmap)
    found = gallery.find_heatmap("data", "a.jpg")
    assert found is not None
    np.testing.assert_allclose(found, heatmap, atol=1 / 255)
    assert gallery.find_heatmap("external", "a.jpg") is None
    gallery.delete_heatmaps("data")
    assert gallery.find_heatmap("data", "a.jpg") is None


def test_an_image_under_its_heat_map_is_bright_where_that_is_high(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    heatmap = np.zeros((4, 4))
    heatmap[3, 0] = 1.0
    gallery.save("data", ["a.jpg"], [np.full((224, 224, 3), 90, np.uint8)], 224)
    assert EmbeddedImages(gallery, 50_000).with_heatmap("data", "a.jpg") is None
    gallery.save_heatmap("data", "a.jpg", heatmap)
    source = EmbeddedImages(gallery, 50_000).with_heatmap("data", "a.jpg")
    assert source is not None
    shown = opened(base64.b64decode(source.split(",")[1]))
    assert shown.shape == (SIDE, SIDE, 3)
    brightness = shown.sum(2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row > SIDE * 0.75
    assert column < SIDE * 0.25
    assert shown[20, 140].max() < 100


def test_a_small_image_is_enlarged_under_its_heat_map() -> None:
    laid = overlay(Image.fromarray(photo()[60:92, 60:92]), np.eye(4))
    assert laid.size == (SIDE, SIDE)
