"""Bad folders of images and bad files of weights through the real command line: exit code 2, each named, nothing started."""

from __future__ import annotations

import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import GOOD, assert_nothing_started, assert_refused, spoilt, write_study
from safetensors.numpy import save_file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


def folder_study(folder: Path, **data: Any) -> Path:
    """Write the good study on the images in `folder/images`."""
    return write_study(folder, spoilt("data", {"source": f"folder:{folder / 'images'}", "image_size": 32, **data}))


def write_images(folder: Path) -> None:
    """Write two classes of six images each."""
    for label in ("cat", "dog"):
        for number in range(6):
            _jpeg(folder / label / f"{number}.jpg")


def _jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (200, 30, sum(str(path.name).encode()) % 256)).save(path)


def _bomb(path: Path) -> None:
    """Write a PNG that says it has 600 megapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 20000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 60])


def _empty_all(folder: Path) -> None:
    for path in folder.glob("*/*.jpg"):
        path.write_bytes(b"")


def _remove_classes(folder: Path) -> None:
    for label in ("cat", "dog"):
        shutil.rmtree(folder / label)


def _rename_to_splits(folder: Path) -> None:
    (folder / "cat").rename(folder / "train")
    (folder / "dog").rename(folder / "val")


# what is wrong -> (what to do to a good folder, what stderr says)
FOLDERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "zero bytes": (lambda f: (f / "cat/0.jpg").write_bytes(b""), ["cat/0.jpg: the file is empty", "on_bad_image: skip"]),
    "truncated": (lambda f: _truncate(f / "cat/1.jpg"), ["cat/1.jpg: truncated"]),
    "text": (lambda f: (f / "dog/2.jpg").write_text("hello"), ["dog/2.jpg: text instead of an image"]),
    "page of the web": (lambda f: (f / "cat/7.jpg").write_text("<!DOCTYPE html><html>"), ["cat/7.jpg: an HTML page"]),
    "bomb": (lambda f: _bomb(f / "dog/bomb.png"), ["dog/bomb.png: too large (600 megapixels", "limit is 100"]),
    "link to nothing": (lambda f: (f / "cat/7.jpg").symlink_to(f / "gone.jpg"), ["cat/7.jpg: ", "leads nowhere"]),
    "no image that can be read": (_empty_all, ["12 images", "cat/0.jpg: ", "dog/5.jpg: ", "on_bad_image: skip"]),
    "one class": (lambda f: shutil.rmtree(f / "dog"), ["a single class, 'cat'", "at least two sub-folders"]),
    "empty class": (lambda f: (f / "bird").mkdir(), ["class 'bird': has no image", "at least 2"]),
    "class with one image": (lambda f: _jpeg(f / "bird/only.jpg"), ["class 'bird': has 1 image", "at least 2"]),
    "images without class": (lambda f: _jpeg(f / "loose.jpg"), ["loose.jpg", "named after its class"]),
    "no classes": (_remove_classes, ["no class folders", "one sub-folder of images per class"]),
    "splits for classes": (_rename_to_splits, ["splits (train, val)", "did you mean source: folder:"]),
}


@pytest.mark.parametrize("command", [["validate", "--no-probe"], ["run", "--inline"]], ids=["validate", "run"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_bad_folder_of_images_is_refused_in_words_and_starts_nothing(
    kind: str, command: list[str], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = FOLDERS[kind]
    write_images(tmp_path / "images")
    spoil(tmp_path / "images")
    assert_refused([*command, str(folder_study(tmp_path))], said, capsys)
    assert_nothing_started(home)


def test_skipping_bad_images_does_not_leave_a_class_without_enough(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images")
    for number in range(5):
        (tmp_path / f"images/cat/{number}.jpg").write_bytes(b"")
    said = ["without the images that cannot be read", "class 'cat': has 1 image", "at least 2"]
    assert_refused(["run", "--inline", str(folder_study(tmp_path, on_bad_image="skip"))], said, capsys)
    assert_nothing_started(home)


class _Payload:
    """Touches a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def _write_weights(kind: str, folder: Path) -> Path:
    path = folder / f"weights{'.pth' if kind == 'pickle' else '.safetensors'}"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": _Payload(folder / "was-run")}, protocol=2))
    elif kind == "other network":
        save_file({"layer.weight": np.zeros((2, 2), np.float32)}, path)
    else:
        path.write_bytes(b"these are no weights")
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no weights", ["cannot be loaded", "accepted are safetensors files"]),
        ("pickle", ["cannot be loaded", "state dict of tensors and nothing else"]),
        ("other network", ["conv_stem.weight: missing", "is it this architecture?"]),
    ],
)
def test_a_bad_file_of_weights_is_refused_and_nothing_in_it_is_run(
    kind: str, said: list[str], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = _write_weights(kind, tmp_path)
    file = write_study(tmp_path, spoilt("backbone", f"efficientnet_lite0@file:{weights}"))
    assert_refused(["run", "--inline", str(file)], [str(weights), *said], capsys)
    assert_nothing_started(home)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no weights", "cannot be read as safetensors"),
        ("pickle", "does not say which architecture it is for; write ARCHITECTURE@file:"),
        ("other network", "its architecture is not known; write ARCHITECTURE@file:"),
    ],
)
def test_weights_that_do_not_say_their_architecture_are_refused_with_the_study_file(
    kind: str, said: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path, {**spoilt("backbone", f"file:{_write_weights(kind, tmp_path)}"), "keep_models": -1})
    assert_refused(["validate", str(file)], ["2 problems", "backbone: ", said, "keep_models: "], capsys)
    assert not home.exists()


IN_A_PROCESS = """
import sys
from raystudy.cli import _call
code = _call(sys.argv[1:], debug=False)
print("loaded", sorted({"ray", "mlflow"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("backbone", "validate"),
        ("backbone", "run"),
        pytest.param("images", "run", marks=pytest.mark.slow),
        pytest.param("weights", "run", marks=pytest.mark.slow),
    ],
)
def test_a_process_refuses_before_it_even_loads_ray_or_mlflow(kind: str, command: str, tmp_path: Path, home: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images/dog/text.jpg").write_text("hello")
    contents = {
        "backbone": (spoilt("backbone", "resnet_50"), "did you mean 'resnet50'?"),
        "images": (spoilt("data", {**GOOD["data"], "source": f"folder:{tmp_path / 'images'}"}), "text instead of an image"),
        "weights": (spoilt("backbone", f"efficientnet_lite0@file:{_write_weights('', tmp_path)}"), "cannot be loaded"),
    }
    content, words = contents[kind]
    arguments = [sys.executable, "-c", IN_A_PROCESS, command, str(write_study(tmp_path, content))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.endswith("loaded []\n")
    assert "Traceback" not in done.stderr
    assert_nothing_started(home)
