from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from tiny import build_tiny_backbone, tiny_model
from torch import Tensor, nn

from raystudy.data.decode import decode
from raystudy.errors import BackboneError, InputError, Problem, RaystudyError
from raystudy.finetune import export, model_card
from raystudy.finetune.backbone import build_backbone
from raystudy.finetune.export import ExportedModel, export_model, export_program, load_exported
from raystudy.finetune.model import Classifier, FineTuneModel, build_classifier
from raystudy.finetune.names import BACKBONE_KEY

SIDE, RESOLUTION = 12, 8
CLASSES = ("Affe", "Bär", "cat, big")
PROVENANCE: dict[str, object] = {
    "study": "zoo",
    "trial_id": "t0007",
    "run_id": "abc",
    "metrics": {"val_accuracy": np.float32(0.5), "val_loss": float("nan")},
    "config": {"learning_rate": 0.1, "pretrained": True},
    "data": "s3://alice:pass@word@bucket/x?region=eu&secret_key=hunter2",
    "tracking": {"api_token": "hunter2", "uri": "https://bob:hunter2@mlflow"},
    "path": Path("/data"),
}

# Runs predict.py as a user does, where raystudy and the libraries of backbones cannot be imported; then prints logits.
RUN_PREDICT = """
import json, runpy, sys
for name in ("raystudy", "timm", "torchvision", "safetensors"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
script = runpy.run_path(sys.argv[0], run_name="__main__")
pixels = [script["read"](path) for path in sys.argv[1:]]
print(json.dumps([script["MODEL"](image[None])[0].tolist() for image in pixels]))
"""


def make_classifier(resolution: int = RESOLUTION) -> Classifier:
    """Return a tiny model whose logits differ clearly from image to image, in the state training leaves it in."""
    model = tiny_model()
    with torch.no_grad():
        model.head.weight.mul_(20)
    return build_classifier(model, resolution=resolution).train()


def export_tiny(folder: Path, classifier: Classifier | FineTuneModel | None = None, **changes: Any) -> ExportedModel:
    arguments: dict[str, Any] = {
        "folder": folder,
        "class_names": CLASSES,
        "image_size": SIDE,
        "backbone": "tiny",
        "provenance": PROVENANCE,
    }
    return export_model(classifier or make_classifier(), **{**arguments, **changes})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    return export_tiny(tmp_path_factory.mktemp("export") / "a new" / "mödel")


@pytest.fixture
def card(exported: ExportedModel) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((exported.folder / "model.json").read_text("utf-8"))
    return content


def some_images(n: int, side: int = SIDE) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3)) * 255


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def logits_of(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = module.eval()(images)
    return logits


def photo(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width)
    coarse = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_images(folder: Path) -> list[Path]:
    """Write one image for every rule of the decoding policy; most of them are not square."""
    wide, tall = photo(50, 20), photo(13, 31)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = wide.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(wide.size))
    deep = (np.asarray(tall.convert("L")).astype(np.uint16) * 251).astype(np.uint16)
    palette = wide.convert("P", palette=Image.Palette.ADAPTIVE)
    saves: dict[str, Callable[[Path], None]] = {
        "wide.png": wide.save,
        "täll one.jpg": tall.save,
        "rotated.jpg": lambda path: wide.save(path, exif=exif),
        "transparent.png": alpha.save,
        "palette.gif": lambda path: palette.save(path, transparency=3),
        "deep.png": Image.fromarray(deep).save,
        "grey.png": tall.convert("L").save,
        "bits.png": wide.convert("1").save,
        "cmyk.jpg": wide.convert("CMYK").save,
        "animated.gif": lambda path: wide.save(path, save_all=True, append_images=[wide.transpose(Image.Transpose.ROTATE_180)]),
    }
    for name, save in saves.items():
        save(folder / name)
    return [folder / name for name in saves]


def run_predict(folder: Path, images: list[Path]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN_PREDICT, str(folder / "predict.py"), *map(str, images)]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment, cwd=folder.parent)


def test_predict_py_tells_without_raystudy_what_the_trial_would(exported: ExportedModel, tmp_path: Path) -> None:
    images = write_images(tmp_path)
    done = run_predict(exported.folder, images)
    assert done.returncode == 0, done.stderr

    *lines, logits = done.stdout.splitlines()
    pixels = np.stack([decode(path.read_bytes(), SIDE).pixels for path in images])
    wanted = logits_of(make_classifier(), torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    assert torch.allclose(torch.tensor(json.loads(logits)), wanted, atol=1e-4)
    probabilities, classes = wanted.softmax(1).max(1)
    for line, path, probability, index in zip(lines, images, probabilities, classes, strict=True):
        shown_path, shown_class, shown_probability = line.split("\t")
        assert (shown_path, shown_class) == (str(path), CLASSES[index])
        assert float(shown_probability) == pytest.approx(float(probability), abs=1e-4)


def test_the_test_images_tell_the_preprocessing_apart(tmp_path: Path) -> None:
    pixels = np.stack([decode(path.read_bytes(), SIDE).pixels for path in write_images(tmp_path)])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    logits = logits_of(make_classifier(), batch)
    assert logits.std(0).min() > 0.01
    assert (logits - logits_of(make_classifier(), batch.flip(1))).abs().max() > 0.01


def test_predict_py_imports_torch_numpy_pillow_and_the_standard_library_only(exported: ExportedModel) -> None:
    lines = (exported.folder / "predict.py").read_text("utf-8").splitlines()
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"json", "sys", "pathlib", "numpy", "torch", "PIL"}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_program_takes_any_batch_size(exported: ExportedModel, n: int) -> None:
    program = torch.export.load(exported.folder / "model.pt2").module()
    images = some_images(n)
    with torch.no_grad():
        assert torch.allclose(program(images), logits_of(make_classifier(), images), atol=1e-5)


def test_load_exported_gives_back_the_module(exported: ExportedModel) -> None:
    module = load_exported(exported.folder, build=build_tiny_backbone)
    assert not module.training
    images = some_images(4)
    # The trial's model computes in another memory layout, which rounds otherwise.
    assert torch.allclose(module(images), logits_of(make_classifier(), images), atol=1e-5)
    assert module.model.state_dict().keys() == make_classifier().model.state_dict().keys()


def test_the_folder_lists_its_files_and_every_skipped_one_has_a_reason(exported: ExportedModel) -> None:
    assert set(exported.files) == {path.name for path in exported.folder.iterdir()}
    always = {"model.safetensors", "model.pt2", "model.json", "predict.py", "README.md"}
    assert always <= set(exported.files)
    assert set(exported.files) | set(exported.skipped) == always | {"model.onnx"}
    readme = (exported.folder / "README.md").read_text("utf-8")
    assert all(name in readme for name in (*exported.files, *exported.skipped) if name != "README.md")
    assert "$" not in readme


def test_the_files_have_the_rights_that_new_files_have(exported: ExportedModel, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert rights(exported.folder) == rights(tmp_path / "folder")
    assert {rights(path) for path in exported.folder.iterdir()} == {rights(tmp_path / "file")}


def test_model_json_says_what_the_model_needs_and_where_it_came_from(card: dict[str, Any]) -> None:
    assert card["class_names"] == list(CLASSES)
    assert card["image_size"] == SIDE
    assert card["preprocessing"]["channel_order"] == "RGB"
    assert card["preprocessing"]["value_range"] == [0, 255]
    assert card["inside_model"]["resize_to"] == RESOLUTION
    assert (card["inside_model"]["mean"], card["inside_model"]["std"]) == ([0.5] * 3, [0.25] * 3)
    assert [unit["name"] for unit in card["backbone"]["units"]] == ["stem", "block1", "block2", "pool"]
    assert card["provenance"]["metrics"] == {"val_accuracy": 0.5, "val_loss": None}
    assert card["provenance"]["config"] == PROVENANCE["config"]
    assert card["provenance"]["path"] == "/data"


def test_no_secret_and_no_path_of_this_machine_is_in_any_file(exported: ExportedModel) -> None:
    here = str(Path(export.__file__).parent).encode()
    for path in exported.folder.iterdir():
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        for content in contents:
            assert here not in content
            assert not any(secret in content for secret in (b"hunter2", b"alice", b"pass@word", b"bob"))
    assert b"s3://bucket/x?region=eu&secret_key=(removed)" in (exported.folder / "model.json").read_bytes()


def test_the_weights_name_their_architecture(exported: ExportedModel) -> None:
    with safe_open(exported.folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()[BACKBONE_KEY] == "tiny"


@pytest.mark.slow
def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    classifier = make_classifier()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    assert export_tiny(tmp_path, classifier).folder == tmp_path, "an empty folder is filled"
    assert (tmp_path / "model.pt2").exists()
    assert all(module.training for module in classifier.modules())
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


@pytest.mark.slow
def test_a_model_without_preprocessing_gets_that_of_its_backbone(tmp_path: Path) -> None:
    model = tiny_model()
    export_tiny(tmp_path / "out", model)
    loaded = load_exported(tmp_path / "out", build=build_tiny_backbone)
    assert torch.allclose(loaded(some_images(2)), logits_of(build_classifier(model), some_images(2)), atol=1e-5)


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty, and nothing is overwritten"):
        export_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError) as caught:
        export_tiny(file, class_names=["one"], image_size=0, provenance={"run": {"x": [object()]}})
    assert [problem.where for problem in caught.value.problems] == [
        "provenance.run.x[0]",
        str(file),
        "class_names",
        "image_size",
    ]


def test_an_image_size_that_the_backbone_cannot_take_is_refused(tmp_path: Path) -> None:
    classifier = build_classifier(tiny_model())
    backbone = classifier.model.backbone
    backbone.info = dataclasses.replace(backbone.info, min_size=4, image_size=8)
    for size, message in ((3, "takes images from 4 px"), (12, "takes images of 8 px only")):
        with pytest.raises(InputError, match=message):
            export_tiny(tmp_path / "out", classifier, image_size=size)


def test_a_folder_below_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        export_tiny(tmp_path / "file" / "out")


class LengthUnit(nn.Module):
    """Asks for the batch's length, which the tracer that is tried first takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(len(x), 1)


class FixedBatchUnit(nn.Module):
    """Works for batches of two only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class DriftingUnit(nn.Module):
    """Computes something else when exported."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_compiling() else x + 1


def with_last_unit(unit: nn.Module) -> Classifier:
    classifier = make_classifier()
    units = classifier.model.backbone.units
    units[-1] = nn.Sequential(units[-1], unit)
    return classifier


@pytest.mark.slow
def test_code_that_asks_for_the_batch_length_can_be_exported() -> None:
    classifier = with_last_unit(LengthUnit())
    program = export_program(classifier, SIDE).module()
    assert torch.allclose(program(some_images(5)), logits_of(classifier, some_images(5)), atol=1e-5)


@pytest.mark.slow
def test_a_program_that_tells_otherwise_is_not_exported_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(RaystudyError, match="logits differ by"):
        export_tiny(tmp_path / "out", with_last_unit(DriftingUnit()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_is_named() -> None:
    with pytest.raises(BackboneError, match="cannot export tiny"):
        export_program(with_last_unit(FixedBatchUnit()), SIDE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", None, "cannot be read"),
        ("model.json", b"{", "is damaged or of another program"),
        ("model.json", b"[]", "is damaged or of another program"),
        ("model.json", b'{"format": 1}', "is damaged or of another program"),
        ("model.json", b'{"format": 2}', "has format 2, expected 1"),
        ("model.safetensors", None, "cannot be read as safetensors"),
        ("model.safetensors", b"torn", "cannot be read as safetensors"),
    ],
)
def test_a_damaged_folder_is_an_input_error(
    exported: ExportedModel, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    for kept in ("model.json", "model.safetensors"):
        (tmp_path / kept).write_bytes((exported.folder / kept).read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_exported(tmp_path, build=build_tiny_backbone)


def test_weights_of_another_model_are_refused(exported: ExportedModel, tmp_path: Path, card: dict[str, Any]) -> None:
    card["class_names"].append("one more")
    (tmp_path / "model.json").write_text(json.dumps(card))
    (tmp_path / "model.safetensors").write_bytes((exported.folder / "model.safetensors").read_bytes())
    with pytest.raises(BackboneError, match=r"head\.weight: found shape \[3, 8\], expected \[4, 8\]"):
        load_exported(tmp_path, build=build_tiny_backbone)


# A few characters that matter: hypothesis takes seconds to load the whole of Unicode.
TEXTS = st.text("aé:/@?=& ", max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(np.int64(3))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8)
)
def test_plain_values_always_fit_into_json(value: object) -> None:
    problems: list[Problem] = []
    json.dumps(model_card.plain(value, "provenance", problems), allow_nan=False)
    assert problems == []


@pytest.mark.parametrize("text", ["resnet18@file:/a/b.safetensors", "models:/NAME@best", "folder:/home/a@b/x", "file:///a@b/c"])
def test_names_that_only_look_like_addresses_are_kept(text: str) -> None:
    assert model_card.plain(text, "", []) == text


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_onnx_tells_the_same(exported: ExportedModel) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.folder / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, SIDE, SIDE]
    for n in (1, 5):
        (logits,) = session.run(["logits"], {"images": some_images(n).numpy()})
        assert np.allclose(logits, logits_of(make_classifier(), some_images(n)).numpy(), atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="onnx is installed")
def test_without_onnx_the_reason_says_what_to_install(exported: ExportedModel) -> None:
    assert "pip install raystudy[onnx]" in exported.skipped["model.onnx"]


@pytest.mark.slow
def test_a_real_backbone_makes_the_round_trip_and_starts_another_study(tmp_path: Path) -> None:
    model = FineTuneModel(build_backbone("efficientnet_lite0", pretrained=False, seed=1), 3)
    wanted = logits_of(build_classifier(model), some_images(2, side=32))
    result = export_tiny(tmp_path / "lite0", model, image_size=32, backbone="efficientnet_lite0")
    assert torch.allclose(load_exported(result.folder)(some_images(2, side=32)), wanted, atol=1e-5)
    again = build_backbone(f"file:{result.folder / 'model.safetensors'}")
    kept = model.backbone.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in again.state_dict().items())
