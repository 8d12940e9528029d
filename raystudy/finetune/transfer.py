"""How far sources are from targets under a backbone: looked up in the machine's cache, else computed and kept there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raystudy.cache import Cache, Entry, Writer
from raystudy.data import PreparedData, check_source, prepare
from raystudy.errors import InputError, Problem, SpecError
from raystudy.findings.transfer import Distance, Sample, distance
from raystudy.finetune.backbone import Backbone, BackboneInfo, build_backbone, builder_with, check_backbone
from raystudy.finetune.compute import Compute
from raystudy.finetune.digests import tensors_digest
from raystudy.finetune.embed import embed
from raystudy.finetune.model import BackboneFactory
from raystudy.finetune.source_models import Sources
from raystudy.spec import StudySpec

KIND = "distance"
"""The kind of these entries of the cache."""

NO_HEAD = "the backbone was trained without labels: it has no classifier for which a head fitted to the source could stand in"
"""Why there is no LEEP under a self-supervised source model."""

_VERSION = 1
"""Of what is computed: another number forgets all that was kept."""


@dataclass(frozen=True, slots=True)
class Place:
    """Images as a study file's `data` section names them; what is measured is their training split.

    Validation and test images stay unseen, so that whoever chooses by a measure has not chosen by them.

    Attributes:
        source: `folder:PATH`, `sklearn:digits`, ...
        validation: a share, or a second source.
        test: likewise, or none.
        on_bad_image: `error` or `skip`.
    """

    source: str
    validation: float | str = 0.2
    test: float | str | None = None
    on_bad_image: str = "error"


@dataclass(frozen=True, slots=True)
class Taking:
    """How features are taken.

    Attributes:
        image_size: side of the decoded images in pixels; 0: that at which the backbone was pretrained.
        resolution: side to which they are resized before the network; 0: not at all.
        per_class: the most images of one class.
        seed: of splits, draws and classifiers.
        device: `auto`, `cpu`, `cuda`, ...
    """

    image_size: int = 0
    resolution: int = 0
    per_class: int = 200
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Pair:
    """A source and a target, measured.

    Attributes:
        source: as the user wrote it.
        target: likewise.
        backbone: what the features are from.
        image_size: side in pixels of the images that were decoded for it.
        distance: the measures.
        absent: why those that have no value have none, by name.
    """

    source: str
    target: str
    backbone: BackboneInfo
    image_size: int
    distance: Distance
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """The backbone's number of parameters: the baseline that estimators of transferability must beat."""
        return sum(self.backbone.unit_parameters)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON data."""
        return {
            "source": self.source,
            "target": self.target,
            "backbone": self.backbone.name,
            "weights": self.backbone.weights,
            "parameters": self.parameters,
            "image_size": self.image_size,
            **asdict(self.distance),
            **({"absent": dict(self.absent)} if self.absent else {}),
        }


def question_of(spec: StudySpec) -> tuple[Place, Taking, list[str]]:
    """Return the study's images, how its trials see them, and its backbones."""
    data = spec.data
    place = Place(data.source, data.validation, data.test, data.on_bad_image)
    resolution = int(spec.constants().get("resolution") or 0)
    return place, Taking(data.image_size, resolution, seed=spec.search.seed), list(spec.backbones)


def measure(
    source: Place,
    targets: Sequence[Place],
    backbones: Sequence[str],
    taking: Taking,
    *,
    cache_dir: Path,
    say: Callable[[str], None] = lambda _: None,
    sources: Sources | None = None,
) -> list[Pair]:
    """Measure `source` with every target under every backbone; nothing is computed before all of them have been read.

    Args:
        source: where one comes from.
        targets: where one wants to go, at least one.
        backbones: their names; targets of one backbone follow one another.
        taking: how.
        cache_dir: the folder of the cache, of decoded images too.
        say: told what is going on.
        sources: the registered models among the backbones.

    Raises:
        InputError: with every problem of sources, backbones and settings that was found.
        CacheError: the cache cannot be written.
    """
    places = list(dict.fromkeys([source, *targets]))
    check(places, backbones, taking)
    compute, cache = Compute.choose(taking.device, "float32"), Cache(cache_dir)
    sources = sources or {}
    build = builder_with(sources, build_backbone)
    headless = {name for name, source in sources.items() if not source.has_head}
    opened = [_open(name, places, taking, cache_dir, say, build, has_head=name not in headless) for name in backbones]
    pairs = []
    for features in (_Features(one, taking, compute, say) for one in opened):
        for target in targets:
            found = _kept(cache, features, source, target)
            info = features.opened.backbone.info
            absent = {} if features.opened.has_head else {"leep": NO_HEAD}
            pairs.append(Pair(source.source, target.source, info, features.opened.image_size, found, absent))
    return pairs


def check(places: Sequence[Place], backbones: Sequence[str], taking: Taking) -> None:
    """Check what can be checked in milliseconds.

    Raises:
        SpecError: with every problem.
    """
    problems: list[Problem] = []
    for names, check_name in (([place.source for place in places], check_source), (backbones, check_backbone)):
        for name in dict.fromkeys(names):
            problems += _problems(check_name, name)
    if taking.image_size < 0 or taking.resolution < 0:
        problems.append(Problem("image size", f"is {min(taking.image_size, taking.resolution)}", "use a number of pixels"))
    if taking.per_class < 1:
        problems.append(Problem("images per class", f"are {taking.per_class}", "use at least 1"))
    if taking.seed < 0:
        problems.append(Problem("seed", f"is {taking.seed}", "use 0 or more"))
    if problems:
        raise SpecError(problems)


def _problems(check_name: Callable[[str], None], name: str) -> Iterator[Problem]:
    try:
        check_name(name)
    except InputError as error:
        yield from error.problems


@dataclass(frozen=True, slots=True)
class _Opened:
    """A backbone, whether it was trained to classify, and the images of all places as it sees them."""

    backbone: Backbone
    image_size: int
    data: dict[Place, PreparedData]
    has_head: bool


def _open(
    name: str,
    places: Sequence[Place],
    taking: Taking,
    cache_dir: Path,
    say: Callable[[str], None],
    build: BackboneFactory,
    *,
    has_head: bool,
) -> _Opened:
    say(f"reading {name}")
    side = taking.resolution or taking.image_size or None
    backbone = build(name, pretrained=True, seed=0, image_size=side)
    size = taking.image_size or backbone.info.input_size
    data = {}
    for place in places:
        say(f"reading {place.source}")
        data[place] = prepare(
            place.source,
            image_size=size,
            validation=place.validation,
            test=place.test,
            on_bad_image=place.on_bad_image,
            seed=taking.seed,
            cache_dir=cache_dir,
        )
    return _Opened(backbone, size, data, has_head)


class _Features:
    """The features of an opened backbone, of every place once, when they are first needed."""

    def __init__(self, opened: _Opened, taking: Taking, compute: Compute, say: Callable[[str], None]) -> None:
        self.opened, self.taking, self.compute, self.say = opened, taking, compute, say
        self._weights = tensors_digest(opened.backbone.state_dict().items())
        self._samples: dict[Place, Sample] = {}

    def of(self, place: Place) -> Sample:
        if place not in self._samples:
            data, taking = self.opened.data[place], self.taking
            self.say(f"features of {place.source} under {self.opened.backbone.info.name}")
            self._samples[place] = embed(
                data,
                data.splits.train,
                self.opened.backbone,
                name=place.source,
                per_class=taking.per_class,
                seed=taking.seed,
                resolution=taking.resolution,
                compute=self.compute,
            )
        return self._samples[place]

    def key(self, source: Place, target: Place) -> str:
        """Return a hash of all that the distance of a pair depends on."""
        info, taking, data = self.opened.backbone.info, self.taking, self.opened.data
        document = [
            _VERSION,
            [data[place].fingerprint for place in (source, target)],
            [self._weights, info.architecture, info.mean, info.std],
            [taking.resolution, taking.per_class, taking.seed],
            # Another device or version rounds differently.
            [self.compute.device.type, torch.__version__, version("scikit-learn"), version("scipy")],
            *([] if self.opened.has_head else ["no head"]),
        ]
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:40]


def _kept(cache: Cache, features: _Features, source: Place, target: Place) -> Distance:
    def build(writer: Writer) -> None:
        samples = features.of(source), features.of(target)
        features.say(f"distance from {source.source} to {target.source}")
        values = asdict(distance(*samples, seed=features.taking.seed, has_head=features.opened.has_head))
        writer.column("measure", pa.array(list(values)))
        writer.column("value", pa.array([None if value is None else float(value) for value in values.values()], pa.float64()))

    about = {"source": source.source, "target": target.source, "backbone": features.opened.backbone.info.name}
    return _read(cache.open_or_build(KIND, features.key(source, target), build, about=about))


def _read(entry: Entry) -> Distance:
    names, values = (entry.batch.column(name).to_pylist() for name in ("measure", "value"))
    by_name = dict(zip(names, values, strict=True))
    counts = {one.name for one in fields(Distance) if one.type in (int, "int")}
    return Distance(**{name: int(value) if name in counts else value for name, value in by_name.items()})
