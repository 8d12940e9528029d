"""A fine-tuned model as a folder that works without raystudy.

FOLDER/
├── model.safetensors   weights, by the names of `FineTuneModel`; also a `file:` backbone for another study
├── model.pt2           exported program: float32 images (batch, 3, side, side) of 0 to 255 to logits, any batch size
├── model.onnx          the same for ONNX runtimes, where the extra `onnx` is installed
├── model.json          classes, preprocessing, backbone, and where the model came from
├── predict.py          classifies image files; needs torch, numpy and Pillow
└── README.md

TorchScript is left out: torch deprecates it in favour of exported programs.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.export import Dim, ExportedProgram

from raystudy.errors import BackboneError, InputError, Problem, RaystudyError
from raystudy.finetune import model_card
from raystudy.finetune.backbone import build_backbone
from raystudy.finetune.model import BackboneFactory, Classifier, FineTuneModel, Preprocess, build_classifier
from raystudy.finetune.model_card import Recipe
from raystudy.finetune.names import BACKBONE_KEY
from raystudy.finetune.weights import load_state

_log = logging.getLogger(__name__)

_TOLERANCE = 1e-4
# Protocol buffers, of which an ONNX file is one, end at 2 GiB; larger weights go to a file beside it.
_ONNX_LIMIT_BYTES = 1_800_000_000


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """What an export wrote.

    Attributes:
        folder: where.
        files: names of the files in it, sorted.
        skipped: why a file that might have been written was not, by its name.
    """

    folder: Path
    files: tuple[str, ...]
    skipped: Mapping[str, str]


def export_model(
    classifier: Classifier | FineTuneModel,
    *,
    folder: Path,
    class_names: Sequence[str],
    image_size: int,
    backbone: str,
    provenance: Mapping[str, object],
) -> ExportedModel:
    """Write a model to `folder` so that it can be used without raystudy; the folder appears complete or not at all.

    Args:
        classifier: the model, on any device; it is left as it is. One without preprocessing gets its backbone's.
        folder: where; it must not exist, or be empty.
        class_names: in the order of the logits.
        image_size: side in pixels of the images that trials decoded.
        backbone: as the study file names it.
        provenance: where the model came from (study, trial, run, metrics, configuration, ...), of plain values.
            Passwords in addresses and values of keys such as `token` are left out; what is not finite becomes null.

    Raises:
        InputError: the folder is not empty or cannot be written, or the arguments do not fit the model.
        BackboneError: torch cannot export this architecture.
    """
    portable = _portable(classifier)
    target = folder.expanduser().resolve()
    problems: list[Problem] = []
    plain_provenance = model_card.plain(provenance, "provenance", problems)
    problems += [*_folder_problems(target), *_argument_problems(portable, class_names, image_size)]
    if problems:
        raise InputError(problems, title=f"export to {folder}")
    card = model_card.describe(
        portable, class_names=class_names, image_size=image_size, backbone=backbone, provenance=plain_provenance
    )
    with _appearing(target) as draft:
        skipped = _write_models(portable, image_size, draft)
        model_card.write_texts(card, skipped, draft)
        files = tuple(sorted(path.name for path in draft.iterdir()))
    _log.info("exported a model to %s: %s", target, ", ".join(files))
    return ExportedModel(target, files, skipped)


def export_program(classifier: Classifier, image_size: int) -> ExportedProgram:
    """Return `classifier` as a program of torch's operators, for the CPU, in eval mode, without any of raystudy's code.

    Args:
        classifier: on any device and in any mode; it is left as it is.
        image_size: side in pixels of its input.

    Returns:
        a program of one input `images`, float32 (batch, 3, image_size, image_size) of 0 to 255, and one output, the
        logits (batch, n_classes); any batch size.

    Raises:
        BackboneError: torch cannot export this architecture.
    """
    portable = _portable(classifier)
    example = torch.zeros(2, 3, image_size, image_size)  # two, because torch takes a size of one for a constant
    program = _trace(portable, example)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # source lines with the paths, and so the user names, of this machine
    return program


def load_exported(folder: Path, *, build: BackboneFactory = build_backbone) -> Classifier:
    """Build the module that `export_model` wrote to `folder`, on the CPU and in eval mode; nothing is unpickled.

    Args:
        folder: what `export_model` wrote.
        build: makes the backbone by the name of its architecture.

    Raises:
        InputError: a file is missing or damaged.
        BackboneError: the weights do not fit the architecture, or there is no such architecture.
    """
    recipe = Recipe.read(folder)
    side = recipe.resolution or recipe.image_size
    backbone = build(recipe.architecture, pretrained=False, seed=0, image_size=side)
    model = FineTuneModel(backbone, recipe.n_classes)
    path = folder / "model.safetensors"
    load_state(model, _read_weights(path), ignored=frozenset(), title=str(path))
    return Classifier(model, Preprocess(recipe.mean, recipe.std, resolution=recipe.resolution)).eval()


def _portable(classifier: Classifier | FineTuneModel) -> Classifier:
    """Return a copy for use anywhere: on the CPU, in eval mode, in the plain memory layout."""
    whole = classifier if isinstance(classifier, Classifier) else build_classifier(classifier)
    copied = copy.deepcopy(whole).cpu().eval().requires_grad_(False)
    return copied.to(memory_format=torch.contiguous_format)


def _trace(classifier: Classifier, example: Tensor) -> ExportedProgram:
    batch = ({0: Dim("batch")},)
    with torch.no_grad():
        try:
            return torch.export.export(classifier, (example,), dynamic_shapes=batch, strict=False)
        except Exception as error:
            # The strict tracer is slower, but reads code that the other cannot run, such as the `len` of a batch.
            _log.debug("exporting in strict mode, because: %s", error)
        try:
            return torch.export.export(classifier, (example,), dynamic_shapes=batch, strict=True)
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            name = classifier.model.backbone.info.name
            what = f"torch {torch.__version__} cannot export {name} ({_first_line(error)})"
            raise BackboneError(Problem("backbone", what, "choose another backbone")) from error


def _folder_problems(folder: Path) -> Iterator[Problem]:
    accepted = "give a folder that does not exist yet, or an empty one"
    if folder.is_dir():
        if any(folder.iterdir()):
            yield Problem(str(folder), "is not empty, and nothing is overwritten", accepted)
    elif folder.exists():
        yield Problem(str(folder), "is a file", accepted)


def _argument_problems(classifier: Classifier, class_names: Sequence[str], image_size: int) -> Iterator[Problem]:
    n_classes, info = classifier.model.head.out_features, classifier.model.backbone.info
    if len(class_names) != n_classes:
        yield Problem("class_names", f"got {len(class_names)} names", f"the model tells {n_classes} classes apart")
    side = classifier.preprocess.resolution or image_size
    if image_size < 1 or side < info.min_size:
        yield Problem("image_size", f"got {image_size} px", f"{info.name} takes images from {info.min_size} px")
    elif info.image_size not in (None, side):
        yield Problem("image_size", f"got {image_size} px", f"this {info.name} takes images of {info.image_size} px only")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` that takes its name when all went well, and is removed when not."""
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    try:
        draft.mkdir(parents=True)
        yield draft
        draft.rename(folder)  # fails where somebody has filled it meanwhile
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise InputError(Problem(str(folder), what, "give another folder, or make room")) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_models(classifier: Classifier, image_size: int, folder: Path) -> dict[str, str]:
    """Write the weights and the programs; return what was skipped, and why."""
    architecture = classifier.model.backbone.info.architecture
    # Clones, because safetensors refuses tensors that share memory; not `save_file`, whose files only their owner may read.
    state = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state, metadata={BACKBONE_KEY: architecture, "format": "pt"}))
    program = export_program(classifier, image_size)
    torch.export.save(program, folder / "model.pt2")
    _verify(folder / "model.pt2", classifier, image_size)
    reason = _write_onnx(program, folder / "model.onnx")
    return {"model.onnx": reason} if reason else {}


def _verify(path: Path, classifier: Classifier, image_size: int) -> None:
    """Make sure that the program in `path` computes what `classifier` does, for another batch size than the traced one."""
    images = torch.rand(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        wanted, found = classifier(images), torch.export.load(path).module()(images)
    if not torch.allclose(found, wanted, atol=_TOLERANCE, rtol=_TOLERANCE, equal_nan=True):
        difference = float((found - wanted).abs().max())
        raise RaystudyError(f"the exported program's logits differ by {difference:.3g} from the model's; nothing was written")


def _write_onnx(program: ExportedProgram, path: Path) -> str:
    """Write `program` as ONNX; return why that was not possible, or an empty text."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; pip install raystudy[onnx]"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about opset versions, none of which the caller chose
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
            )
        assert converted is not None
        size = sum(tensor.nbytes for tensor in program.state_dict.values())
        converted.save(path, external_data=size > _ONNX_LIMIT_BYTES)
    except Exception as error:  # a model is of use without ONNX; the converter raises nearly anything
        _log.debug("no ONNX", exc_info=error)
        for part in path.parent.glob(f"{path.name}*"):
            part.unlink()
        return f"torch cannot convert this model ({_first_line(error)})"
    return ""


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        what = f"cannot be read as safetensors ({_first_line(error)})"
        raise InputError(Problem(str(path), what, "check that the folder was copied completely")) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
