"""Every name that MLflow sees, owned here: tags, params, metrics, artifacts, and what our states are called there."""

from __future__ import annotations

from raystudy.records import StudyState, TrialState

PREFIX = "raystudy."
"""Before every tag of ours; those on versions of registered models are made by `provenance`."""

# Tags on both kinds of run
KIND = "raystudy.kind"
STATE = "raystudy.state"
REASON = "raystudy.reason"
STUDY_KIND, TRIAL_KIND = "study", "trial"

# Tags on the parent run
FINGERPRINT = "raystudy.fingerprint"
VERSION = "raystudy.version"
JOURNAL_ID = "raystudy.journal_id"
"""Identifies the journal that feeds the run, so that two studies of one name on two machines are never mixed."""
METRIC = "raystudy.metric"
MODE = "raystudy.mode"
TRIALS = "raystudy.trials"
"""The budget in trials; a tag, since a resume may extend it and params cannot change."""
CLASSES = "raystudy.classes"
UNITS = "raystudy.units"
"""What `max` stands for in frozen depths: the number of units of the smallest backbone."""
OWNER = "raystudy.owner"
GPU_HOURS = "raystudy.gpu_hours"
SUMMARY = "raystudy.summary"
"""Trials by state, epochs and the best trial so far as JSON: what `list` shows without a look at any trial."""

# Tags on a child run
TRIAL_ID = "raystudy.trial_id"
NUMBER = "raystudy.number"
NODE = "raystudy.node"
RETRIES = "raystudy.retries"
EPOCHS = "raystudy.epochs"
"""The last epoch reported. Written after the metrics it speaks of: what it says is in MLflow, is."""
BEST_EPOCH = "raystudy.best_epoch"
KEPT = "raystudy.kept"
GPU_SECONDS = "raystudy.gpu_seconds"
KEEP_PROBABILITY = "raystudy.keep_probability"

# MLflow's own tags
PARENT = "mlflow.parentRunId"
RUN_NAME = "mlflow.runName"

BEST_PREFIX = "best_"
"""Before the name of a metric: its value at the trial's best epoch so far, with that epoch as step."""

READOUT_PREFIX = "readout."
"""Before the names of what was read out of a kept network, `readout.cka.u03` of unit 3 and `readout.separability`, with the
epoch as step. No reports: the journal knows nothing of them, tables leave them out and `verify` does not ask for them."""

METRIC_ORDER = (
    "train_loss",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "val_balanced_accuracy",
    "images_per_second",
    "epoch_seconds",
    "gpu_peak_gib",
)
"""The metrics that trials report, in the order in which tables have them; others follow by name."""

# Artifacts of the parent run
STUDY_FILE = "study.yaml"
JOURNAL_FILE = "journal"
TRIALS_FILE = "trials.parquet"
REPORTS_FILE = "reports.parquet"
IMPORTANCE_FILE = "importance.json"
"""The answer to what matters, or {"error": ...} where it could not be computed."""
IMPORTANCE_TABLE = "importance.parquet"
IMPORTANCE_FIGURE = "importance.png"
REPORT_FILE = "report.html"
"""The page about the study, for people."""

# Artifacts of a child run whose model is kept
PER_CLASS_FILE = "per_class.json"
READOUTS_FILE = "readouts.json"
READOUTS_FIGURE = "readouts.png"

# Models
MODEL_NAME = "model"
MODEL_WEIGHTS = "model.safetensors"
MODEL_CARD = "model.json"
CLASSES_FILE = "classes.json"
MODEL_ID = "raystudy.model_id"
"""A tag of versions in the registry: the logged model that it is."""
MODEL_EXTRAS = "extra_files"
"""Where MLflow puts the files that a model comes with."""
BEST_ALIAS = "best"

TRIAL_STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.INTERRUPTED: "KILLED",
    TrialState.FAILED: "FAILED",
    TrialState.DIVERGED: "FAILED",
}
STUDY_STATUS = {
    StudyState.RUNNING: "RUNNING",
    StudyState.COMPLETED: "FINISHED",
    StudyState.INTERRUPTED: "KILLED",
    StudyState.FAILED: "FAILED",
}


def readout_metric(measure: str, unit: int | None = None) -> str:
    """Return the metric of a read-out, of one unit by its index or of the whole network."""
    return f"{READOUT_PREFIX}{measure}" if unit is None else f"{READOUT_PREFIX}{measure}.u{unit:02d}"


def is_report(metric: str) -> bool:
    """Whether a metric stems from reports, as all do but read-outs."""
    return not metric.startswith(READOUT_PREFIX)


def metric_rank(name: str) -> tuple[int, str]:
    """Return the sort key that puts metrics into the order of tables."""
    return (METRIC_ORDER.index(name) if name in METRIC_ORDER else len(METRIC_ORDER), name)
