"""The files that the parent run of a study holds."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from raystudy.records import StudyRecord
from raystudy.tracking import names
from raystudy.tracking.content import spec_of
from raystudy.tracking.store import Store
from raystudy.tracking.tables import reports_table, trials_table


def store_study_file(store: Store, run_id: str, record: StudyRecord) -> None:
    """Store the study file, so that a running study can be read without its folder."""
    with tempfile.TemporaryDirectory() as scratch:
        store.upload(run_id, _study_file(record, Path(scratch)))


def store_results(store: Store, run_id: str, record: StudyRecord, journal: Path, run_ids: Mapping[str, str]) -> None:
    """Store the study file, the journal and both tables."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy = Path(shutil.copyfile(journal, folder / names.JOURNAL_FILE))
        trials, reports = folder / names.TRIALS_FILE, folder / names.REPORTS_FILE
        pq.write_table(trials_table(record, run_ids), trials)
        pq.write_table(reports_table(record), reports)
        for file in (_study_file(record, folder), copy, trials, reports):
            store.upload(run_id, file)


def _study_file(record: StudyRecord, folder: Path) -> Path:
    file = folder / names.STUDY_FILE
    file.write_text(spec_of(record).to_yaml())
    return file
