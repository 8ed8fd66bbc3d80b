"""Sources of images: named sets, and any folder of class folders.

A source finds a set in the folder that `--data` names, or downloads it if that is possible. Only
the driver opens sources, so workers download nothing. Image files are read by
`search.data.decoding`. The module is long so that a space file gets every source from here.
"""

from __future__ import annotations

import difflib
import gzip
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spaces.archives import open_folder
from spaces.downloads import download_once
from spaces.errors import SourceError as SourceError  # what space files and commands import
from spaces.label_tables import DataFrame, LabelTable, label_table


@dataclass(frozen=True, eq=False)
class Arrays:
    """A set of images that consists of arrays, not of files."""

    images: np.ndarray
    """uint8 [N, H, W] or [N, H, W, 3]."""
    labels: np.ndarray
    """int64 [N], indices into `classes`."""
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """A unique name for each image, such as "train/00001"."""
    splits: tuple[str | None, ...]
    """The official split of each image: "train", "val", "test", or None."""


@dataclass(frozen=True)
class Source:
    """A folder of class folders; named sets are subclasses.

    Raises:
        SourceError: `classes` is not a tuple of two or more different names.
    """

    name: str
    classes: tuple[str, ...] | None = None
    """The classes to use, in this order; None uses all."""
    obtain: str = ""
    """How to get a set that cannot be downloaded automatically; part of the error message."""
    ignored: tuple[str, ...] = ()
    """Folders that are no classes unless `classes` names them."""
    table: LabelTable | None = None
    """A table of the images and their labels, instead of class folders."""
    group_by: str | None = None
    """A regular expression that finds the group in an image's name; see `from_table`."""

    def __post_init__(self) -> None:
        if self.group_by is not None:
            check_pattern(self.group_by)
        if self.classes is None:
            return
        # A single name is a string, which is a sequence of letters.
        if not isinstance(self.classes, tuple) or len(self.classes) < 2:
            raise SourceError(
                f"classes must be a tuple of two or more names, but got {self.classes!r}"
            )
        if odd := [name for name in self.classes if not isinstance(name, str)]:
            raise SourceError(
                f"the names of classes must be text, but got {odd[0]!r}: write {str(odd[0])!r}"
            )
        if len({unicodedata.normalize("NFC", name) for name in self.classes}) < len(self.classes):
            raise SourceError(f"classes must all differ, but got {self.classes!r}")

    def with_labels(
        self,
        labels: Path | None,
        image: str | None = None,
        label: str | None = None,
        group: str | None = None,
        group_by: str | None = None,
    ) -> Source:
        """Return this source with the labels and the groups that the command line gives.

        Args:
            labels: The table; None keeps the source's own.
            image: The column of images, if given.
            label: The column of labels, if given.
            group: The column of groups, if given.
            group_by: The pattern of groups, if given.

        Raises:
            SourceError: columns are given without a table, or the pattern is none.
        """
        table = self.table if labels is None else LabelTable(labels)
        for name, column in (("image", image), ("label", label), ("group", group)):
            if column is not None and table is None:
                raise SourceError(
                    f"--{name}-column names a column of a table, but there is none: give it with"
                    " --labels"
                )
        if table is not None:
            table = replace(
                table,
                image=table.image if image is None else image,
                label=table.label if label is None else label,
                group=table.group if group is None else group,
            )
        return replace(self, table=table, group_by=self.group_by if group_by is None else group_by)

    def open(self, data: Path | None, cache: Path) -> Path | Arrays:
        """Find the set, or download it if `data` is None.

        Args:
            data: The folder or the archive that `--data` names: the set in its usual layout, a
                parent of it, or any folder of class folders.
            cache: The folder of downloads, and of archives that were unpacked.

        Returns:
            A folder to scan, or arrays.

        Raises:
            SourceError, ArchiveError: the set is unavailable.
        """
        if data is not None:
            data = open_folder(data, cache)
            return data if self.table else self._within(data)
        if self.table is None or self.table.path is None:
            return self._without_data(cache)
        return self.table.path.expanduser().absolute().parent

    def _without_data(self, cache: Path) -> Path | Arrays:
        how = f"; {self.obtain}" if self.obtain else ""
        raise SourceError(
            "this space brings no images of its own: give --data DIR, a folder that holds a"
            f" folder per class, or train/ [val/] test/ of those{how}"
        )

    def _within(self, data: Path) -> Path | Arrays:
        return data


def folder(
    classes: tuple[str, ...] | None = None, obtain: str = "", group_by: str | None = None
) -> Source:
    """Use the folder that `--data` names.

    Args:
        classes: The class folders to use, in this order; None uses all.
        obtain: How to get the set; part of the error message if `--data` is missing.
        group_by: See `from_table`.
    """
    return Source("folder", classes, obtain, group_by=group_by)


def from_table(
    table: DataFrame | str | Path,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    classes: tuple[str, ...] | None = None,
    group_by: str | None = None,
) -> Source:
    """Use the images that a table names, with its labels.

    Paths of images are below the folder that `--data` names, or else below the table's folder.
    Columns that are not given are found by their names.

    Args:
        table: A pandas DataFrame, or the path of a .csv, .tsv, .jsonl or .parquet file.
        image: The column of paths, names, or names without suffix.
        label: The column of labels.
        split: The column of the official splits: train, val and test, or other words for them.
        group: The column of groups, such as patients, cameras or products. Images of one group are
            in one split and in one fold.
        classes: The labels to use, in this order; None uses all.
        group_by: Instead of such a column, a regular expression that finds the group in the name
            of an image: what its first group in parentheses that takes part matches, or all that it
            matches. It is applied to the path below the data folder if it has a slash, else to the
            file's name.
    """
    described = label_table(table, image, label, split, group)
    return Source("table", classes, table=described, group_by=group_by)


def from_csv(
    path: str | Path,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    classes: tuple[str, ...] | None = None,
    group_by: str | None = None,
) -> Source:
    """Use the images that a CSV file names: see `from_table`."""
    return from_table(path, image, label, split, group, classes, group_by)


def check_pattern(pattern: str) -> None:
    """Check a regular expression.

    Raises:
        SourceError: it is none.
    """
    if pattern == "":  # as of a variable that is not set: it would find no groups
        raise SourceError("--group-by must be a regular expression, but it is empty")
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise SourceError(
            f"--group-by must be a regular expression, but {pattern!r} is none: {error}"
        ) from None


def caltech101(classes: tuple[str, ...] | None = None) -> Source:
    """Use Caltech-101 (Li, Andreetto, Ranzato, Perona): about 9,000 photos of 101 objects.

    Args:
        classes: The classes to use, in this order; None uses all but BACKGROUND_Google.
    """
    return _Caltech101("Caltech-101", classes, ignored=("BACKGROUND_Google",))


def fashion_mnist() -> Source:
    """Use Fashion-MNIST (arXiv 1708.07747): 70,000 grayscale images of 28 × 28 pixels."""
    return _FashionMNIST("Fashion-MNIST")


def digits() -> Source:
    """Use scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, which need no download."""
    return _Digits("handwritten digits")


def rendered_digits() -> Source:
    """Use digits rendered in fonts that `tinynet` was not pretrained on."""
    return _RenderedDigits("rendered digits")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the most similar known word; empty if none is similar."""
    known = list(known)
    folded = {name.casefold(): name for name in known}  # so that "faces" is similar to "Faces"
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


class _Caltech101(Source):
    """`101_ObjectCategories/`, in the data folder or in the folder of torchvision's download."""

    def _within(self, data: Path) -> Path:
        for parent in ("", "caltech101", "caltech-101"):
            if (found := data / parent / "101_ObjectCategories").is_dir():
                return found
        return data

    def _without_data(self, cache: Path) -> Path:
        def fetch(folder: Path) -> None:
            from torchvision.datasets import Caltech101

            Caltech101(folder, download=True)

        target = cache / "caltech101"
        page = "https://data.caltech.edu/records/mzrjq-6wc02"
        _download(self.name, target, fetch, page)
        return target / "101_ObjectCategories"


class _FashionMNIST(Source):
    """The four idx files, compressed (.gz) or not; or any folder of class folders."""

    def _within(self, data: Path) -> Path | Arrays:
        for raw in (data / "FashionMNIST" / "raw", data / "raw", data):
            if any(_idx_file(raw, name) for name in _FASHION_FILES):
                return _read_fashion(raw)
        return data

    def _without_data(self, cache: Path) -> Arrays:
        def fetch(folder: Path) -> None:
            from torchvision.datasets import FashionMNIST

            FashionMNIST(folder, download=True)

        target = cache / "FashionMNIST"
        page = "https://github.com/zalandoresearch/fashion-mnist"
        _download(self.name, target, fetch, page)
        return _read_fashion(target / "raw")


class _Digits(Source):
    def _without_data(self, cache: Path) -> Arrays:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        names = tuple(f"digits/{index:04d}" for index in range(len(labels)))
        return _arrays_of_digits(np.rint(images.reshape(-1, 8, 8) * (255 / 16)), labels, names)


class _RenderedDigits(Source):
    def _without_data(self, cache: Path) -> Arrays:
        from spaces.glyphs import external_digits

        return _arrays_of_digits(*external_digits(seed=0))


def _arrays_of_digits(images: np.ndarray, labels: np.ndarray, names: Iterable[str]) -> Arrays:
    return Arrays(
        images=np.ascontiguousarray(images, dtype=np.uint8),
        labels=np.asarray(labels, dtype=np.int64),
        classes=tuple("0123456789"),
        names=tuple(names),
        splits=(None,) * len(labels),
    )


_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx_file(raw: Path, name: str) -> Path | None:
    """Return the file, or its compressed form; None if there is neither."""
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def _read_fashion(raw: Path) -> Arrays:
    found = [_idx_file(raw, name) for name in _FASHION_FILES]
    files = [path for path in found if path]
    if len(files) < len(found):
        missing = [name for name, path in zip(_FASHION_FILES, found, strict=True) if not path]
        raise SourceError(
            f"Fashion-MNIST is four files, but {raw} lacks {', '.join(missing)}:"
            " copy them there, or download the set by omitting --data"
        )
    train_images, train_labels, test_images, test_labels = (_read_idx(path) for path in files)
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise SourceError(
                f"Fashion-MNIST in {raw} is damaged: its images and labels do not match"
            )
    return Arrays(
        images=np.concatenate([train_images, test_images]),
        labels=np.concatenate([train_labels, test_labels]).astype(np.int64),
        classes=_FASHION_CLASSES,
        names=(
            *(f"train/{index:05d}" for index in range(len(train_labels))),
            *(f"test/{index:05d}" for index in range(len(test_labels))),
        ),
        splits=("train",) * len(train_labels) + ("test",) * len(test_labels),
    )


def _read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes (http://yann.lecun.com/exdb/mnist).

    It consists of a magic number, the shape in big-endian integers, and the values.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    n_dims = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    header = 4 + 4 * n_dims
    if not n_dims or len(content) < header:
        raise SourceError(f"{path} is damaged: it is not an idx file of bytes")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", n_dims, offset=4))
    if len(content) != header + math.prod(shape):
        raise SourceError(
            f"{path} is damaged: it must have {header + math.prod(shape)} bytes,"
            f" but has {len(content)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _download(name: str, target: Path, fetch: Callable[[Path], None], page: str) -> None:
    """Download a set once; raise a SourceError that names it and the address of its page."""
    try:
        download_once(target, fetch)
    # Downloads fail in many ways (URLError, HTTPException, a wrong hash, a full disk).
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"{name} could not be downloaded to {target.parent} (page: {page}): {reason}."
            " Try again when the network allows it, or get the set from that page and give its"
            " folder with --data DIR"
        ) from error
