from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raystudy.data import PreparedData, prepare, summarise
from raystudy.errors import DataError

Change = Callable[[Path], object]


def picture(number: int, kind: str = "PNG") -> bytes:
    """An image of its own for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small PNG whose header announces 600 megapixels."""
    header = struct.pack(">IIBBBBB", 30_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A clean folder: 4 roses, 5 tulips."""
    root = tmp_path / "flowers"
    for number in range(9):
        name = "roses" if number < 4 else "tulips"
        write(root / name / f"{number}.png", picture(number))
    return root


def load(root: Path, **options: object) -> PreparedData:
    arguments = {"image_size": 8, "cache_dir": root.parent / "cache", "workers": 2, **options}
    return prepare(f"folder:{root}", **arguments)  # type: ignore[arg-type]


def link_to_itself(root: Path) -> None:
    (root / "roses/me.png").symlink_to("me.png")


def two_unicode_forms(root: Path) -> None:
    for number in range(3):
        write(root / f"é/{number}.png", picture(60 + number))
        write(root / f"e\u0301/{number}.png", picture(65 + number))


def three_text_files(root: Path) -> None:
    for number in range(3):
        write(root / f"roses/{number}.TXT", b"x")


def linked_file(root: Path) -> None:
    write(root.parent / "elsewhere.png", picture(70))
    (root / "roses/l.png").symlink_to(root.parent / "elsewhere.png")


def linked_folder(root: Path) -> None:
    write(root.parent / "elsewhere/y.png", picture(70))
    (root / "roses/l").symlink_to(root.parent / "elsewhere")


def name_not_utf8(root: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(root) + b"/roses/\xff.png")), picture(70))


# What is done to the folder, and words of the error: of every one at least one problem, place included.
ERRORS: dict[str, tuple[Change, list[str]]] = {
    "zero_bytes": (lambda r: write(r / "roses/e.jpg", b""), ["roses/e.jpg", "0 bytes"]),
    "truncated": (lambda r: write(r / "roses/t.jpg", picture(50, "JPEG")[:-90]), ["roses/t.jpg", "truncated"]),
    "text_as_jpg": (lambda r: write(r / "tulips/n.jpg", b"not a flower"), ["tulips/n.jpg", "text instead of an image"]),
    "html_as_jpg": (lambda r: write(r / "tulips/n.jpg", b"<html>404"), ["tulips/n.jpg", "HTML"]),
    "bomb": (lambda r: write(r / "roses/b.png", bomb()), ["roses/b.png", "600 megapixels", "the limit is 100"]),
    "unknown_extension": (lambda r: write(r / "roses/x.heic", b"1"), ["roses/x.heic"]),
    "no_extension": (lambda r: write(r / "roses/scan", b"\0\1\2"), ["roses/scan", "not an image"]),
    "broken_link": (lambda r: (r / "roses/l.png").symlink_to("gone.png"), ["roses/l.png", "leads nowhere"]),
    "link_to_itself": (link_to_itself, ["roses/me.png", "leads nowhere"]),
    "pipe": (lambda r: os.mkfifo(r / "roses/p.png"), ["roses/p.png", "not a regular file"]),
    "bad_image_deep_below": (lambda r: write(r / "roses/a/b/c.png", b""), ["roses/a/b/c.png"]),
    "bad_image_with_odd_name": (lambda r: write(r / "roses/ö x\u4e2d.png", b""), ["roses/ö x\u4e2d.png"]),
    "empty_class": (lambda r: (r / "lilies").mkdir(), ["class 'lilies'", "no image"]),
    "class_of_text_files": (lambda r: write(r / "notes/a.txt", b"x"), ["class 'notes'", "no image"]),
    "class_with_one_image": (
        lambda r: write(r / "lilies/1.png", picture(90)),
        ["class 'lilies'", "has 1 image", "at least 2"],
    ),
    "images_without_class": (lambda r: write(r / "a.png", picture(91)), ["outside any class", "a.png", "sub-folder"]),
    "class_is_a_broken_link": (lambda r: (r / "lilies").symlink_to("gone"), ["flowers/lilies", "leads nowhere"]),
    "nested_class_empty": (lambda r: (r / "lilies/deep").mkdir(parents=True), ["class 'lilies'", "no image"]),
    "two_unicode_forms": (two_unicode_forms, ["2 folders are named 'é'"]),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_messy_folder_is_refused_with_place_and_reason(kind: str, flowers: Path) -> None:
    change, words = ERRORS[kind]
    change(flowers)
    with pytest.raises(DataError) as caught:
        load(flowers)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


HARMLESS: dict[str, tuple[Change, str]] = {
    "hidden_file": (lambda r: write(r / "roses/.DS_Store", b"x"), ""),
    "hidden_folder": (lambda r: write(r / ".git/config.png", b"x"), ""),
    "hidden_folder_in_class": (lambda r: write(r / "roses/.ipynb_checkpoints/0.png", b"x"), ""),
    "macos_archive": (lambda r: write(r / "__MACOSX/roses/._0.png", b"x"), ""),
    "windows_clutter": (lambda r: write(r / "roses/Thumbs.db", b"x"), ""),
    "text_files": (three_text_files, "not images were ignored: 3 (.txt: 3)"),
    "metadata_in_root": (lambda r: write(r / "labels.csv", b"x"), ".csv: 1"),
    "readme_in_root": (lambda r: write(r / "README", b"x"), "not images were ignored: 1"),
    "link_to_ancestor": (lambda r: (r / "roses/up").symlink_to("..", target_is_directory=True), "visited already"),
    "link_to_own_folder": (lambda r: (r / "roses/me").symlink_to(".", target_is_directory=True), "visited already"),
    "broken_link_to_a_folder": (lambda r: (r / "roses/sub").symlink_to("gone"), "broken link"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_mess_changes_no_image_and_is_mentioned(kind: str, flowers: Path) -> None:
    clean = load(flowers)
    change, words = HARMLESS[kind]
    change(flowers)
    data = load(flowers)
    assert data.names == clean.names
    assert data.class_names == clean.class_names
    assert data.fingerprint == clean.fingerprint
    assert any(words in warning for warning in data.warnings) if words else data.warnings == clean.warnings


ADDITIONS: dict[str, tuple[Change, str]] = {
    "nested": (lambda r: write(r / "roses/2024/may/a.png", picture(70)), "roses/2024/may/a.png"),
    "spaces_and_unicode": (lambda r: write(r / "roses/a b ß\u4e2d.png", picture(70)), "roses/a b ß\u4e2d.png"),
    "upper_case_extension": (lambda r: write(r / "roses/A.JPG", picture(70, "JPEG")), "roses/A.JPG"),
    "wrong_extension": (lambda r: write(r / "roses/a.jpg", picture(70, "WEBP")), "roses/a.jpg"),
    "no_extension": (lambda r: write(r / "roses/scan", picture(70)), "roses/scan"),
    "linked_file": (linked_file, "roses/l.png"),
    "linked_folder": (linked_folder, "roses/l/y.png"),
    "percent_and_hash": (lambda r: write(r / "roses/50%20#1?.png", picture(70)), "roses/50%20#1?.png"),
    "name_not_utf8": (name_not_utf8, "roses/\\xff.png"),
}


@pytest.mark.parametrize("kind", ADDITIONS)
def test_images_are_found_wherever_they_lie_and_however_they_are_called(kind: str, flowers: Path) -> None:
    change, name = ADDITIONS[kind]
    change(flowers)
    data = load(flowers)
    assert len(data.images) == 10
    assert data.class_names[data.labels[list(data.names).index(name)]] == "roses"


def test_a_folder_of_splits_is_recognised(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split / "roses/1.png", picture(1))
    with pytest.raises(DataError, match=r"did you mean source: folder:.*/train and validation: folder:.*/val\?"):
        prepare(f"folder:{tmp_path}", image_size=8, cache_dir=tmp_path / "cache")


def test_a_folder_around_the_classes_is_recognised(flowers: Path) -> None:
    with pytest.raises(DataError, match=r"a single class, 'flowers'.*did you mean folder:.*/flowers"):
        load(flowers.parent)


def test_an_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one sub-folder of images per class"):
        load(tmp_path / "empty")


def test_all_problems_of_the_structure_come_in_one_error(flowers: Path) -> None:
    (flowers / "lilies").mkdir()
    write(flowers / "daisies/1.png", picture(50))
    write(flowers / "stray.png", picture(51))
    with pytest.raises(DataError) as caught:
        load(flowers)
    assert len(caught.value.problems) == 3


def test_all_bad_images_come_in_one_error_and_the_message_lists_twenty(flowers: Path) -> None:
    for number in range(27):
        write(flowers / f"roses/bad{number:02}.png", b"")
    with pytest.raises(DataError) as caught:
        load(flowers)
    assert len(caught.value.problems) == 27
    message = str(caught.value)
    assert "27 images cannot be read" in message
    assert "... and 7 more" in message
    assert message.count("0 bytes") == 20
    assert "on_bad_image: skip" in message


def test_skipped_images_are_recorded_and_known_again_without_decoding(flowers: Path) -> None:
    write(flowers / "roses/bad.png", b"")
    first = load(flowers, on_bad_image="skip")
    calls: list[tuple[int, int]] = []
    second = load(flowers, on_bad_image="skip", progress=lambda done, total: calls.append((done, total)))
    assert [(bad.name, bad.reason) for bad in first.bad] == [("roses/bad.png", "the file is empty (0 bytes)")]
    assert second.bad == first.bad
    assert second.fingerprint == first.fingerprint
    assert calls == []
    assert len(first.images) == 9
    assert "roses/bad.png" not in first.names
    with pytest.raises(DataError, match=r"roses/bad\.png"):
        load(flowers)


def test_a_class_that_skipping_left_too_small_is_an_error(flowers: Path) -> None:
    write(flowers / "lilies/1.png", picture(80))
    write(flowers / "lilies/2.png", b"")
    with pytest.raises(DataError, match="class 'lilies': has 1 image"):
        load(flowers, on_bad_image="skip")


def test_the_fingerprint_follows_pixels_not_places(flowers: Path) -> None:
    before = load(flowers)
    moved = flowers.rename(flowers.with_name("moved"))
    assert load(moved).fingerprint == before.fingerprint
    write(moved / "roses/0.png", picture(99))
    assert load(moved).fingerprint != before.fingerprint
    assert load(moved, seed=1).fingerprint != load(moved).fingerprint


def test_a_changed_file_is_decoded_again(flowers: Path) -> None:
    before = load(flowers)
    write(flowers / "roses/0.png", picture(99))
    os.utime(flowers / "roses/0.png", ns=(1, 1))
    after = load(flowers)
    assert not np.array_equal(before.images[0], after.images[0])
    assert np.array_equal(before.images[1:], after.images[1:])


def test_progress_counts_every_image(flowers: Path) -> None:
    calls: list[tuple[int, int]] = []
    load(flowers, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 9) for done in range(1, 10)]


def test_images_are_a_read_only_map_of_rgb_pixels(flowers: Path) -> None:
    data = load(flowers)
    assert data.images.shape == (9, 8, 8, 3)
    assert not data.images.flags.writeable
    assert not data.images.flags.owndata
    assert data.labels.tolist() == [0] * 4 + [1] * 5


def test_the_summary_counts_classes_splits_and_sizes(flowers: Path) -> None:
    summary = summarise(load(flowers, test=0.2))
    assert [(c.name, c.train, c.validation, c.test) for c in summary.classes] == [("roses", 2, 1, 1), ("tulips", 3, 1, 1)]
    assert (summary.train, summary.validation, summary.test) == (5, 2, 2)
    assert summary.original_sizes == (12, 12, 12)
    assert summary.image_size == 8


def test_a_second_source_validates(flowers: Path) -> None:
    other = flowers.with_name("other")
    for number, name in enumerate(["roses", "tulips", "tulips"]):
        write(other / name / f"{number}.png", picture(200 + number))
    data = load(flowers, validation=f"folder:{other}", test=0.2)
    assert len(data.splits.validation) == 3
    assert data.names[data.splits.validation[0]] == "validation:roses/0.png"
    assert len(data.splits.train) + len(data.splits.test if data.splits.test is not None else []) == 9


def test_identical_images_in_both_sources_are_reported(flowers: Path) -> None:
    other = flowers.with_name("other")
    for number, name in enumerate(["roses", "tulips"]):
        write(other / name / "x.bmp", picture(number * 4, "BMP"))
    data = load(flowers, validation=f"folder:{other}")
    assert any("2 of 2" in w and "validation:roses/x.bmp = roses/0.png" in w for w in data.warnings)


def test_a_second_source_with_other_classes_is_refused(flowers: Path) -> None:
    other = flowers.with_name("other")
    for name in ("rose", "tulips"):
        write(other / name / "x.png", picture(1))
    with pytest.raises(DataError, match=r"lacks 'roses' and has 'rose' in addition"):
        load(flowers, validation=f"folder:{other}")


@pytest.mark.parametrize("how", ["same", "spelled_otherwise", "linked", "linked_files"])
def test_sources_that_share_files_are_refused(how: str, flowers: Path) -> None:
    other = flowers.with_name("other")
    if how == "linked":
        other.symlink_to(flowers)
    if how == "linked_files":
        for path in flowers.glob("*/*.png"):
            (other / path.parent.name).mkdir(parents=True, exist_ok=True)
            (other / path.parent.name / path.name).symlink_to(path)
    second = {"same": flowers, "spelled_otherwise": flowers / "roses/..", "linked": other, "linked_files": other}[how]
    with pytest.raises(DataError, match="9 of its files are also in"):
        load(flowers, validation=f"folder:{second}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": 0.0}, "data.validation: is 0.0"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"validation": 0.6, "test": 0.5}, "add up to 1.1"),
        ({"on_bad_image": "ignore"}, "use error or skip"),
        ({"image_size": 0}, "at least 1"),
        ({"validation": "folder:/no/such"}, "/no/such"),
        ({"validation": "folder:/no/such", "test": "fodler:x"}, "did you mean folder:x?"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], words: str, flowers: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(flowers, **options)
    assert words in str(caught.value)
