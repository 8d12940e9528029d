"""A trial's read-outs: which images they look at, what the network was at the start, and the file that they go to.

A read-out changes nothing in the trial: it runs in eval mode without gradients, puts every mode back, and draws no random
number. It is written before the epoch's checkpoint, so that no epoch that a resumed trial goes on from lacks its own; an epoch
that is trained again after a crash is read again. Whatever goes wrong is a line of the log.

What the network was at the start is found out at the first read-out, so that trials stopped before pay nothing: it is built
again, unless so little trains that a copy of it costs nothing. Its responses are the same for all trials that start from the
same weights, and the process keeps them.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from raystudy.data import PreparedData
from raystudy.findings.readouts import START, ReadOut, Values, to_line
from raystudy.finetune import readouts
from raystudy.finetune.batches import ImageStore, evaluation_batch_size
from raystudy.finetune.checkpoint import frozen_digest
from raystudy.finetune.compute import Compute
from raystudy.finetune.digests import tensors_digest
from raystudy.finetune.model import Classifier, FineTuneModel
from raystudy.finetune.readouts_file import append
from raystudy.finetune.readouts_probe import MOST_BOUNDARY_BYTES, Boundary, Collector, Probe, Response, finite

_BATCH = 64
_STARTS_KEPT = 2
_KEYS_KEPT = 64
_MOST_COPIED_BYTES = 2**23
"""Of starting weights that every trial copies in case it is read out: well under a millisecond's worth."""

StartingWeights = Mapping[int, Mapping[str, Tensor]]
"""State of the units that train, by their number, on the CPU."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Start:
    """What the network was before training: the `responses` of every unit, and outputs of frozen units by their number."""

    responses: tuple[Response, ...]
    boundaries: OrderedDict[int, Boundary] = field(default_factory=OrderedDict)

    def keep(self, boundary: Boundary) -> None:
        """Keep an output for the next read-out, in the place of the oldest where there is no room for all."""
        if boundary.is_kept:
            self.boundaries[boundary.depth] = boundary
        while sum(one.nbytes for one in self.boundaries.values()) > MOST_BOUNDARY_BYTES:
            self.boundaries.popitem(last=False)


_starts: OrderedDict[str, _Start] = OrderedDict()
"""Of this process, the last used last."""
_keys: OrderedDict[str, str] = OrderedDict()
"""Digests of whole starting networks, by those of their frozen and of their trained tensors; the last found last."""


def starting_weights(model: FineTuneModel, trained: Collection[int]) -> StartingWeights | None:
    """Return a copy of the units that train, as `model` has them before it trains; None where that is too much to copy."""
    states = {index: model.backbone.units[index].state_dict() for index in trained}
    if sum(tensor.nbytes for state in states.values() for tensor in state.values()) > _MOST_COPIED_BYTES:
        return None
    return {index: {name: tensor.to("cpu", copy=True) for name, tensor in state.items()} for index, state in states.items()}


class ReadOuts:
    """Takes the read-outs of one trial.

    Args:
        build: builds the network at the weights that the trial starts from.
        data: the images; the probe set is of its validation images, the same for all trials of a study.
        images: the same images, as the trial fetches them.
        folder: the trial's own.
        trained: the units that train in some phase of the trial.
        seed: the study's.
        compute: the device and precision.
        digest: of the tensors that never train, see `frozen_digest`.
        start: see `starting_weights`.
        dead_below: see `ReadOut`.
    """

    def __init__(
        self,
        build: Callable[[], FineTuneModel],
        data: PreparedData,
        images: ImageStore,
        folder: Path,
        *,
        trained: Collection[int],
        seed: int,
        compute: Compute,
        digest: str,
        start: StartingWeights | None = None,
        dead_below: float = readouts.DEAD_BELOW,
    ) -> None:
        self._build, self._images, self._folder = build, images, folder
        self._trained, self._compute, self._dead_below = frozenset(trained), compute, dead_below
        self._data, self._seed, self._digest, self._start = data, seed, digest, start
        self._basis: _Basis | None = None
        self._is_start_written = False

    def record(self, classifier: Classifier, epoch: int) -> None:
        """Append the read-out of `classifier` as it is after `epoch` to the file, the first time the start's before it."""
        try:
            with _undisturbed(classifier, self._compute):
                lines = [to_line(readout) for readout in self._take(classifier, epoch)]
            append(self._folder, "".join(lines))
            self._is_start_written = True
        except Exception as error:  # it runs the network's own code, and a trial is complete without it
            _log.warning("no read-out of epoch %d: %s: %s", epoch, type(error).__name__, error)

    def _take(self, classifier: Classifier, epoch: int) -> list[ReadOut]:
        began = time.perf_counter()
        units = classifier.model.backbone.units
        basis = self._basis = self._basis or self._find_basis(classifier)
        changed = [index for index in sorted(self._trained) if not _holds(units[index], basis.weights[index])]
        now = self._responses_now(classifier, basis, changed[0] if changed else len(units))
        change, angle = _weight_values(units, basis.weights, changed)
        found = [self._read_out(classifier, epoch, basis, now, (change, angle), began)]
        if not self._is_start_written:
            none = (0.0,) * len(units)
            responses = basis.start.responses
            found.insert(0, self._read_out(classifier, START, basis, responses, (none, none), time.perf_counter()))
        return found

    # The start

    def _find_basis(self, classifier: Classifier) -> _Basis:
        # Where nothing but the head trains, the network still is what it was.
        model = cache(lambda: self._build().eval() if self._trained else classifier.model)
        probe = Probe.of(self._data, self._seed)
        about = (probe.pixels, classifier.preprocess.resolution, self._compute.device, self._compute.precision)
        key = f"{self._digest_at_start(model)} {about}"
        if key not in _starts:
            _starts[key] = self._responses_at_start(classifier, probe, model().backbone.units)
            while len(_starts) > _STARTS_KEPT:
                _starts.popitem(last=False)
        _starts.move_to_end(key)
        # On the CPU whatever the trial trains on: there is room.
        weights = self._start or {index: model().backbone.units[index].cpu().state_dict() for index in self._trained}
        return _Basis(probe, weights, _starts[key])

    def _digest_at_start(self, model: Callable[[], FineTuneModel]) -> str:
        """Return a digest of all but the head: what the trial itself takes a digest of if nothing else trains."""
        if not self._trained:
            return self._digest
        if self._start is None:
            return frozen_digest(model(), _head(model()))
        named = ((f"{index}.{name}", tensor) for index, state in self._start.items() for name, tensor in state.items())
        parts = f"{self._digest} {tensors_digest(sorted(named))}"
        if parts not in _keys:
            _keys[parts] = frozen_digest(model(), _head(model()))
            while len(_keys) > _KEYS_KEPT:
                _keys.popitem(last=False)
        return _keys[parts]

    def _responses_at_start(self, classifier: Classifier, probe: Probe, units: nn.ModuleList) -> _Start:
        responses, boundary = Collector(len(units), probe), Boundary(min(self._trained, default=0))
        units.to(self._compute.device)
        for batch in self._batches(classifier, probe):
            for index, unit in enumerate(units):
                if index == boundary.depth > 0:
                    boundary.add(batch)
                batch = self._run(unit, batch)
                responses.add(index, batch)
        start = _Start(responses.collected())
        start.keep(boundary)
        return start

    # Now

    def _responses_now(self, classifier: Classifier, basis: _Basis, depth: int) -> tuple[Response, ...]:
        """Return what the units make of the probe set; the first `depth` are what they were, and so is their output."""
        units, before = classifier.model.backbone.units, basis.start.responses
        if depth == len(units):
            return before
        responses = Collector(len(units), basis.probe)
        for batch in self._inputs(classifier, basis, depth):
            for index in range(depth, len(units)):
                batch = self._run(units[index], batch)
                responses.add(index, batch)
        return (*before[:depth], *responses.collected()[depth:])

    def _inputs(self, classifier: Classifier, basis: _Basis, depth: int) -> Iterator[Tensor]:
        """Yield the probe set as the first `depth` units give it."""
        if depth in basis.start.boundaries:
            yield from basis.start.boundaries[depth].batches(self._compute.device)
            return
        boundary = Boundary(depth)
        for batch in self._batches(classifier, basis.probe):
            for unit in classifier.model.backbone.units[:depth]:
                batch = self._run(unit, batch)
            if depth:
                boundary.add(batch)
            yield batch
        basis.start.keep(boundary)

    def _batches(self, classifier: Classifier, probe: Probe) -> Iterator[Tensor]:
        """Yield the probe set as validation would see it, in batches that need less memory than validation's."""
        n = len(probe.indices)
        side = classifier.preprocess.resolution or int(self._data.images.shape[1])
        size = max(1, min(_BATCH, -(-n // 2), evaluation_batch_size(side) // 2))
        for start in range(0, n, size):
            images, _ = self._images.fetch(probe.indices[start : start + size])
            yield classifier.preprocess(images)

    def _run(self, unit: nn.Module, batch: Tensor) -> Tensor:
        with self._compute.autocast():
            output: Tensor = unit(batch)
        return output

    # Numbers

    def _read_out(
        self,
        classifier: Classifier,
        epoch: int,
        basis: _Basis,
        now: Sequence[Response],
        moved: tuple[Values, Values],
        began: float,
    ) -> ReadOut:
        probe = basis.probe
        alike = [_similarity(then, one) for then, one in zip(basis.start.responses, now, strict=True)]
        projection = now[-1].projection
        return ReadOut(
            epoch=epoch,
            units=tuple(classifier.model.backbone.info.unit_names),
            weight_change=moved[0],
            angle=moved[1],
            cka=tuple(finite(one.cka) for one in alike),
            cka_chance=tuple(finite(one.chance) for one in alike),
            dead=tuple(finite(readouts.dead_share(one.activity, self._dead_below)) for one in now),
            selectivity=tuple(one.selectivity for one in now),
            selectivity_chance=readouts.selectivity_chance(probe.labels, probe.n_top),
            separability=now[-1].separability,
            embedding=tuple((float(f"{x:.5g}"), float(f"{y:.5g}")) for x, y in projection.points.tolist()),
            explained=projection.explained,
            labels=tuple(probe.labels.tolist()),
            top_images=probe.n_top,
            dead_below=self._dead_below,
            seconds=round(time.perf_counter() - began, 4),
        )


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a trial's read-outs compare with.

    Attributes:
        probe: the images.
        weights: the starting tensors of the units that train, on the CPU.
        start: what the network made of the images.
    """

    probe: Probe
    weights: StartingWeights
    start: _Start


@contextmanager
def _undisturbed(classifier: Classifier, compute: Compute) -> Iterator[None]:
    """Put the network into eval mode without gradients; afterwards every mode and all random state is as it was."""
    modes = [(module, module.training) for module in classifier.modules()]
    # no_grad, not inference_mode: some backbones keep tensors that they computed once, and these are trained with.
    with torch.random.fork_rng(devices=[compute.device] if compute.is_gpu else []), torch.no_grad():
        classifier.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _head(model: FineTuneModel) -> list[str]:
    return [name for name in model.state_dict() if not name.startswith("backbone.")]


def _holds(unit: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a unit's weights and statistics are those of `state`, bit for bit."""
    return all(torch.equal(tensor.cpu(), state[name]) for name, tensor in unit.state_dict().items())


def _weight_values(units: nn.ModuleList, weights: StartingWeights, changed: Sequence[int]) -> tuple[Values, Values]:
    """Return change and angle of every unit; those that have not changed read 0 without any arithmetic."""
    change: list[float | None] = [0.0] * len(units)
    angle: list[float | None] = [0.0] * len(units)
    for index in changed:
        state = weights[index]
        pairs = {name: (state[name].to(now.device), now) for name, now in units[index].named_parameters()}
        directed = [pairs[name] for name in readouts.scale_free(units[index])]
        change[index] = readouts.weight_change(pairs.values())
        angle[index] = readouts.weight_angle(directed) if directed else None
    return tuple(map(finite, change)), tuple(map(finite, angle))


def _similarity(then: Response, now: Response) -> readouts.Similarity:
    if now is then:
        return now.unchanged
    return then.similarity(now)
