from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from raystudy.data import PreparedData, check_source, prepare
from raystudy.data.filesystem import Kind, Location
from raystudy.data.folder import scan_location
from raystudy.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8), np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_pair(folder: Path, part: str = "train", *, gz: bool = False, images: np.ndarray = IMAGES) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in (("images-idx3", idx(images)), ("labels-idx1", idx(LABELS[: len(images)]))):
        path = folder / f"{part}-{name}-ubyte{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content) if gz else content)


def load(source: str, tmp_path: Path, **options: object) -> PreparedData:
    return prepare(source, image_size=8, cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]


def test_idx_files_are_read_alike_gzipped_and_plain(tmp_path: Path) -> None:
    write_pair(tmp_path / "plain")
    write_pair(tmp_path / "gz", gz=True)
    plain, zipped = (load(f"idx:{tmp_path / name}", tmp_path) for name in ("plain", "gz"))
    assert np.array_equal(plain.images, np.repeat(IMAGES[..., None], 3, axis=3))
    assert plain.labels.tolist() == LABELS.tolist()
    assert plain.class_names == ("0", "1", "2")
    assert plain.fingerprint == zipped.fingerprint


def test_idx_reads_the_training_pair_unless_the_other_is_selected_or_alone(tmp_path: Path) -> None:
    write_pair(tmp_path / "both", "train")
    write_pair(tmp_path / "both", "t10k", images=IMAGES[:6])
    write_pair(tmp_path / "one", "t10k", images=IMAGES[:6])
    assert len(load(f"idx:{tmp_path}/both", tmp_path).images) == 12
    assert len(load(f"idx:{tmp_path}/both#t10k", tmp_path).images) == 6
    assert len(load(f"idx:{tmp_path}/one", tmp_path).images) == 6
    second = load(f"idx:{tmp_path}/both", tmp_path, validation=f"idx:{tmp_path}/both#t10k")
    assert (len(second.splits.train), len(second.splits.validation)) == (12, 6)
    with pytest.raises(DataError, match="also in"):
        load(f"idx:{tmp_path}/both", tmp_path, validation=f"idx:{tmp_path}/both#train")


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


BAD_IDX: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing_labels": (lambda d: (d / "train-labels-idx1-ubyte").unlink(), "no pair of train images and labels"),
    "truncated": (_write("train-images-idx3-ubyte", idx(IMAGES)[:-9]), "truncated: 759 of 768 samples"),
    "short_header": (_write("train-images-idx3-ubyte", idx(IMAGES)[:7]), "header is cut off"),
    "empty": (_write("train-images-idx3-ubyte", b""), "begins with nothing"),
    "text": (_write("train-labels-idx1-ubyte", b"hello"), "instead of 00000801"),
    "counts_differ": (_write("train-labels-idx1-ubyte", idx(LABELS[:5])), "12 images, but"),
    "colour_images": (_write("train-images-idx3-ubyte", idx(IMAGES[..., None])), "instead of 00000803"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx_files_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    write_pair(tmp_path / "d")
    change, words = BAD_IDX[name]
    change(tmp_path / "d")
    with pytest.raises(DataError, match=words):
        load(f"idx:{tmp_path}/d", tmp_path)


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "d", gz=True)
    path = tmp_path / "d/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load(f"idx:{tmp_path}/d", tmp_path)


def test_several_idx_pairs_must_be_told_apart(tmp_path: Path) -> None:
    for kind in ("emnist-letters", "emnist-digits"):
        write_pair(tmp_path / "d", f"{kind}-train")
    with pytest.raises(DataError, match="several pairs"):
        load(f"idx:{tmp_path}/d", tmp_path)
    assert len(load(f"idx:{tmp_path}/d#emnist-digits-train", tmp_path).images) == 12


def test_digits_are_scikit_learns_scaled_to_eight_bits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    data = load("sklearn:digits", tmp_path)
    expected = np.round(load_digits().images * 255 / 16)
    assert np.array_equal(data.images[..., 0], expected)
    assert data.labels.tolist() == load_digits().target.tolist()
    assert data.class_names == tuple("0123456789")
    assert data.warnings == ()


def test_torchvision_sets_are_read_through_torchvision(tmp_path: Path) -> None:
    write_pair(tmp_path / "root/FashionMNIST/raw", "train")
    write_pair(tmp_path / "root/FashionMNIST/raw", "t10k", images=IMAGES[:6])
    data = load(f"torchvision:FashionMNIST@{tmp_path}/root", tmp_path)
    assert np.array_equal(data.images[..., 0], IMAGES)
    assert data.class_names == ("T-shirt/top", "Trouser", "Pullover")
    test = load(f"torchvision:FashionMNIST@{tmp_path}/root#test", tmp_path)
    assert len(test.images) == 6


def test_torchvision_sets_of_image_files_are_read(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / f"root/eurosat/2750/{'Forest' if number % 2 else 'River'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    data = load(f"torchvision:EuroSAT@{tmp_path}/root", tmp_path)
    assert data.class_names == ("Forest", "River")
    assert [int(image[0, 0, 0]) for image in data.images] == [1, 3, 5, 0, 2, 4]


def test_a_torchvision_set_that_is_not_there_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSTUDY_ALLOW_DOWNLOAD", raising=False)
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=r"CIFAR10 is not there .*RAYSTUDY_ALLOW_DOWNLOAD=1"):
        load(f"torchvision:CIFAR10@{tmp_path}/root", tmp_path)
    assert list((tmp_path / "root").iterdir()) == []


BAD = {
    "digits": "use one of folder:PATH",
    "": "use one of folder:PATH",
    "fodler:/x": "did you mean folder:/x?",
    "sklearn:digts": "use sklearn:digits",
    "folder:": "nothing follows",
    "folder:/no/such/place": "the folder / exists",
    "parquet:/no/such.parquet": "no such file or folder",
    "idx:/no/such#t10k": "no such file or folder",
    "torchvision:cifar10": "did you mean CIFAR10?",
    "torchvision:Nonsense": "use one of CIFAR10",
    "torchvision:Flowers102@/no/such": "Flowers102 is not there",
    "torchvision:Flowers102@/tmp#training": "it has train, val, test",
}


@pytest.mark.parametrize("source", BAD)
def test_check_source_refuses_with_what_would_be_accepted(source: str) -> None:
    with pytest.raises(DataError) as caught:
        check_source(source)
    assert BAD[source] in str(caught.value)


def test_check_source_guesses_a_misspelt_path_and_a_missing_scheme(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    with pytest.raises(DataError, match=f"did you mean {tmp_path}/flowers"):
        check_source(f"folder:{tmp_path}/flwers")
    with pytest.raises(DataError, match=f"did you mean folder:{tmp_path}/flowers"):
        check_source(f"{tmp_path}/flowers")


def test_check_source_accepts_what_exists(tmp_path: Path) -> None:
    (tmp_path / "a b#c").mkdir()
    for source in ("sklearn:digits", f"folder:{tmp_path}/a b#c", f"idx:{tmp_path}#t10k", "folder:s3://bucket/x"):
        check_source(source)
    check_source(f"parquet:{tmp_path}/train-*.parquet")
    with pytest.raises(DataError, match="is a file"):
        check_source(f"folder:{__file__}")


def test_unknown_kinds_of_uri_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="s3://"):
        load("folder:foo://bucket/x", tmp_path)


def test_checking_a_source_imports_neither_torch_nor_sklearn(tmp_path: Path) -> None:
    code = (
        "import sys; from raystudy.data import check_source; check_source('sklearn:digits');"
        f"check_source('torchvision:CIFAR10@{tmp_path}');"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'ray', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_class_folders_in_an_object_store_are_a_source() -> None:
    scan = scan_location(Location(fs.PyFileSystem(fs.FSSpecHandler(_memory_filesystem())), "bucket", "memory://bucket"))
    listing = scan.load()
    assert listing.class_names == ("empty", "flowers")
    assert list(listing.names) == ["flowers/a/1.png", "flowers/b.png"]
    assert [read() for read in listing.reads()] == [b"abc", b"x"]
    assert listing.labels.tolist() == [1, 1]


def test_object_stores_are_listed_and_read_through_arrow() -> None:
    memory = fs.PyFileSystem(fs.FSSpecHandler(_memory_filesystem()))
    location = Location(memory, "bucket/flowers", "memory://bucket/flowers")
    assert [(node.name, node.kind) for node in location.children()] == [("a", Kind.FOLDER), ("b.png", Kind.FILE)]
    (image,) = location.at("bucket/flowers/a").children()
    assert (image.name, image.size) == ("1.png", 3)
    assert location.read(image.path) == b"abc"


def _memory_filesystem() -> object:
    from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

    filesystem = MemoryFileSystem()
    filesystem.pipe({"/bucket/flowers/a/1.png": b"abc", "/bucket/flowers/b.png": b"x", "/bucket/empty/n.txt": b""})
    return filesystem


@pytest.mark.parametrize("source", ["folder:/" + "x" * 400, "folder:~no-such-user-9/x", "x" * 5000, "folder:a\0b"])
def test_what_no_file_system_can_hold_is_refused_in_words(source: str) -> None:
    with pytest.raises(DataError):
        check_source(source)
