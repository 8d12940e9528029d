from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raystudy.data import PreparedData, prepare
from raystudy.errors import DataError

CLASSES = ["daisy", "rose", "tulip"]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def hugging_face(labels: list[int | None], *, image: str = "image", label: str = "label", **extra: Any) -> pa.Table:
    """A table as `datasets` writes it: a struct column, and class names in the schema's metadata."""
    images = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(len(labels))]
    features = {
        image: {"_type": "Image"},
        label: {"names": CLASSES, "_type": "ClassLabel"},
        **{name: {"names": ["x", "y"], "_type": "ClassLabel"} for name in extra},
    }
    table = pa.table(
        {
            image: pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            label: pa.array(labels, pa.int64()),
            **extra,
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def plain(labels: Any, **extra: Any) -> pa.Table:
    return pa.table({"image": [picture(number) for number in range(len(labels))], "label": labels, **extra})


def save(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path


def load(location: object, tmp_path: Path, **options: Any) -> PreparedData:
    return prepare(f"parquet:{location}", image_size=4, cache_dir=tmp_path / "cache", workers=2, **options)


@pytest.mark.parametrize("names", [{}, {"image": "img", "label": "fine_label"}, {"image": "scan", "label": "species"}])
def test_hugging_face_files_give_pixels_labels_and_class_names(names: dict[str, str], tmp_path: Path) -> None:
    labels: list[int | None] = [2, 0, 1] * 3
    data = load(save(tmp_path / "t.parquet", hugging_face(labels, **names)), tmp_path)
    assert data.class_names == tuple(CLASSES)
    assert data.labels.tolist() == labels
    assert [int(image[0, 0, 0]) for image in data.images] == list(range(9))
    assert data.names[8] == "t.parquet:8"


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        (["b", "a", "b", "a"], ("a", "b"), [1, 0, 1, 0]),
        (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), [1, 0, 1, 0]),
        ([10, 9, 10, 9], ("9", "10"), [1, 0, 1, 0]),
        ([True, False, True, False], ("False", "True"), [1, 0, 1, 0]),
    ],
)
def test_classes_without_declared_names_are_the_sorted_values(
    labels: Any, class_names: tuple[str, ...], expected: list[int], tmp_path: Path
) -> None:
    data = load(save(tmp_path / "t.parquet", plain(labels)), tmp_path)
    assert data.class_names == class_names
    assert data.labels.tolist() == expected


def test_a_folder_and_a_pattern_read_all_their_files_in_order(tmp_path: Path) -> None:
    for shard in range(3):
        save(tmp_path / f"hf/data/train-0000{shard}.parquet", plain(["a", "b", "a", "b"]))
    (tmp_path / "hf/README.md").write_text("x")
    (tmp_path / "hf/.cache").mkdir()
    (tmp_path / "hf/.cache/x.parquet").write_text("x")
    whole = load(tmp_path / "hf", tmp_path)
    pattern = load(f"{tmp_path}/hf/*/train-*", tmp_path)
    assert len(whole.images) == 12
    assert whole.names[4] == "data/train-00001.parquet:0"
    assert pattern.fingerprint == whole.fingerprint


def test_splits_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        save(tmp_path / "hf/data" / name, plain(["a", "b"] * 3))
    with pytest.raises(DataError, match=r"several splits \(test, train\).*parquet:.*/hf/train\*"):
        load(tmp_path / "hf", tmp_path)
    data = load(f"{tmp_path}/hf/data/train*", tmp_path, validation=f"parquet:{tmp_path}/hf/data/test-00000-of-00001.parquet")
    assert (len(data.splits.train), len(data.splits.validation)) == (6, 6)


def test_rows_without_image_or_label_are_bad_images_with_their_row(tmp_path: Path) -> None:
    table = hugging_face([0, 1, 2, 0, 1, 2, -1, None, 7, 0, 1, 2])
    images = table.column("image").to_pylist()
    images[3] = None
    images[4] = {"bytes": None, "path": "4.png"}
    images[5] = {"bytes": b"text", "path": None}
    table = table.set_column(0, "image", pa.array(images, table.schema.field("image").type))
    data = load(save(tmp_path / "t.parquet", table), tmp_path, on_bad_image="skip")
    assert [(bad.name, bad.reason) for bad in data.bad] == [
        ("t.parquet:3", "there is no image in this row"),
        ("t.parquet:4", "only the path '4.png' is stored, not the image"),
        ("t.parquet:5", "text instead of an image"),
        ("t.parquet:6", "the label is missing"),
        ("t.parquet:7", "the label is missing"),
        ("t.parquet:8", "the label 7 has no class name"),
    ]
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(DataError, match=r"t\.parquet:3: there is no image"):
        load(tmp_path / "t.parquet", tmp_path)


def test_declared_classes_without_rows_are_left_out_with_a_warning(tmp_path: Path) -> None:
    data = load(save(tmp_path / "t.parquet", hugging_face([2, 0, 2, 0])), tmp_path)
    assert data.class_names == ("daisy", "tulip")
    assert data.labels.tolist() == [1, 0, 1, 0]
    assert "declared classes without an image are left out: 1 (rose)" in data.warnings


def test_two_label_columns_must_be_told_apart(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", hugging_face([0, 1] * 2, label="fine", coarse=[0, 0, 1, 1]))
    with pytest.raises(DataError, match=r"label column could be any of fine, coarse.*#label=COLUMN"):
        load(path, tmp_path)
    assert load(f"{path}#label=coarse", tmp_path).labels.tolist() == [0, 0, 1, 1]


TABLES = {
    "no_image": (pa.table({"label": [0, 1]}), ["the image column is missing", "label (int64)"]),
    "no_label": (pa.table({"image": [b"1", b"2"]}), ["the label column is missing"]),
    "neither": (pa.table({"x": [0.5, 1.5]}), ["the image column is missing", "the label column is missing"]),
    "paths_only": (pa.table({"image": ["a.png"], "label": [0]}), ["the image column is missing"]),
    "two_images": (pa.table({"before": [b""], "after": [b""], "label": [0]}), ["could be any of before, after"]),
    "single_row_class": (plain(["a", "b", "b"]), ["class 'a'", "has 1 image"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_unsuitable_tables_are_refused_with_what_would_be_accepted(name: str, tmp_path: Path) -> None:
    table, words = TABLES[name]
    with pytest.raises(DataError) as caught:
        load(save(tmp_path / "t.parquet", table), tmp_path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("content", "words"), [(b"", "0 bytes"), (b"PAR1 no PAR1", "cannot be read as Parquet")])
def test_damaged_files_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    save(tmp_path / "d/0.parquet", plain(["a", "b"]))
    (tmp_path / "d/1.parquet").write_bytes(content)
    with pytest.raises(DataError, match=f"d/1.parquet: .*{words}"):
        load(tmp_path / "d", tmp_path)


def test_a_file_with_other_columns_is_named(tmp_path: Path) -> None:
    save(tmp_path / "d/0.parquet", plain(["a", "b"]))
    save(tmp_path / "d/1.parquet", pa.table({"image": [b""], "kind": ["a"]}))
    with pytest.raises(DataError, match=r"1\.parquet: has no column 'label'.*it has image, kind"):
        load(tmp_path / "d", tmp_path)


@pytest.mark.parametrize(
    ("location", "words"),
    [("nothing", "no such file"), ("empty", "no Parquet files"), ("empty/*.parquet", "no Parquet files")],
)
def test_places_without_parquet_files_are_refused(location: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        load(tmp_path / location, tmp_path)


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", plain(["a", "b"]))
    with pytest.raises(DataError, match="'column' is unknown; use parquet:PATH#label=COLUMN"):
        load(f"{path}#column=x", tmp_path)
    with pytest.raises(DataError, match="'x' is not there"):
        load(f"{path}#label=x", tmp_path)


def test_a_file_uri_is_read_like_the_path(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", plain(["a", "b"] * 3))
    assert load(path.as_uri(), tmp_path).fingerprint == load(path, tmp_path).fingerprint
