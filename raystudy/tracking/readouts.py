"""What fine-tuning changed in the networks that a study keeps, brought into their runs: metrics, a file, a figure."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raystudy.findings.readouts import PER_UNIT, START
from raystudy.records import TrialRecord
from raystudy.tracking import names
from raystudy.tracking.content import Point, milliseconds
from raystudy.tracking.store import Store, StoreDown, StoreRefused

if TYPE_CHECKING:
    from raystudy.findings.readouts import ReadOut

_FORMAT = 1
_log = logging.getLogger(__name__)


def store_readouts(store: Store, run_id: str, trial: TrialRecord, folder: Path, classes: Sequence[str]) -> None:
    """Store a trial's read-outs in its run, once however often this is called; what goes wrong is a line of the log.

    Times and values come from the journal and from the trial's file, so that what is written again after a crash is equal and
    counts once in MLflow. The JSON file comes last: where it is, everything is.

    Args:
        store: the store.
        run_id: the trial's run.
        trial: the trial.
        folder: its checkpoints, which may be gone.
        classes: the class names, in the order of the labels.

    Raises:
        StoreDown: the store does not answer; to be repeated.
    """
    try:
        readouts = _of_reports(trial, folder)
        if not readouts or _is_stored(store, run_id):
            return
        store.write(run_id, points=list(_points(trial, readouts)), tags={})
        with tempfile.TemporaryDirectory() as scratch:
            for file in _files(trial, readouts, classes, Path(scratch)):
                store.upload(run_id, file)
    except StoreDown:
        raise
    except Exception as error:  # a study is complete without them
        _log.warning("the read-outs of trial %s are not stored: %s: %s", trial.trial_id, type(error).__name__, error)


def _of_reports(trial: TrialRecord, folder: Path) -> list[ReadOut]:
    """Return the read-outs of the start and of the epochs that the journal knows."""
    from raystudy.finetune.readouts_file import read

    return [one for one in read(folder) if one.epoch == START or one.epoch in trial.reports]


def _is_stored(store: Store, run_id: str) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            store.download(run_id, names.READOUTS_FILE, Path(scratch))
        except StoreRefused:
            return False
    return True


def _points(trial: TrialRecord, readouts: Sequence[ReadOut]) -> Iterator[Point]:
    for readout in readouts:
        time = milliseconds(trial.started if readout.epoch == START else trial.reports[readout.epoch].time)
        for measure in PER_UNIT:
            for unit, value in enumerate(readout.values(measure)):
                if value is not None:
                    yield Point(names.readout_metric(measure, unit), readout.epoch, value, time)
        if readout.separability is not None:
            yield Point(names.readout_metric("separability"), readout.epoch, readout.separability, time)


def _files(trial: TrialRecord, readouts: Sequence[ReadOut], classes: Sequence[str], folder: Path) -> Iterator[Path]:
    from raystudy.findings.figures import save
    from raystudy.findings.readout_figures import readout_figure

    figure = folder / names.READOUTS_FIGURE
    save(readout_figure(readouts, classes, title=f"What fine-tuning changed: trial {trial.trial_id}"), figure)
    yield figure
    about = {"format": _FORMAT, "trial_id": trial.trial_id, "classes": list(classes)}
    file = folder / names.READOUTS_FILE
    file.write_text(json.dumps({**about, "epochs": [one.to_dict() for one in readouts]}, ensure_ascii=False))
    yield file
