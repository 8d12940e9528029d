"""The answer to "which factors matter, by how much, and how sure are we": plain frozen data, the same in Python and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from raystudy.factors import Scalar

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

Verdict = Literal["important", "minor", "not identified"]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Plain):
    """A number with its 90 % interval.

    Attributes:
        value: the posterior mean.
        low: the lower end; exactly 0 for a share that cannot be told from none.
        high: the upper end.
    """

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """How far the ends are apart."""
        return self.high - self.low


class Share(_Plain):
    """What one factor, or the interaction of two, contributes to the variance of the metric.

    Attributes:
        factors: the factor, or the two whose interaction this is.
        first_order: Sobol's first-order index (for two: the index of their interaction alone); None where nothing can be said.
        total: Sobol's total index, everything that the factor takes part in; None for a pair.
        probability_first: probability that no other factor's first-order index is larger; None for a pair.
        verdict: `important`, `minor`, or `not identified` where the trials do not say.
        active: the share of the declared configurations in which the factor has an effect; below 1 where it has a condition.
        within_active: the first-order index among the configurations in which the factor is active; None without condition.
        reason: why the verdict is `not identified`, else empty.
    """

    factors: tuple[str, ...]
    first_order: Interval | None
    total: Interval | None
    probability_first: float | None
    verdict: Verdict
    active: float = 1.0
    within_active: Interval | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The factor, or both with a times sign between them."""
        return " × ".join(self.factors)


class Level(_Plain):
    """One value of a factor and what it does.

    Attributes:
        value: the factor's value.
        mean: the metric, averaged over all other factors.
        profile: the metric with the nuisance factors tuned for this value; averaged over the other scientific ones.
        probability_best: probability that this level's profile is the best.
    """

    value: Scalar
    mean: Interval
    profile: Interval
    probability_best: float


class Effect(_Plain):
    """How the metric depends on one factor; for a conditional factor, where it is active.

    Attributes:
        factor: its name.
        role: scientific, nuisance or empty where not known.
        scale: `log`, `linear`, `ordered` or `categorical`.
        levels: all of a factor's levels, or evenly spaced values on its scale.
    """

    factor: str
    role: str
    scale: Literal["log", "linear", "ordered", "categorical"]
    levels: tuple[Level, ...]

    @property
    def best(self) -> Level:
        """The level that is most probably the best."""
        return max(self.levels, key=lambda level: level.probability_best)


class Surface(_Plain):
    """The metric over two factors, averaged over all others.

    Attributes:
        factors: the two.
        rows: values of the first.
        columns: values of the second.
        mean: the metric, one tuple per value of the first.
    """

    factors: tuple[str, str]
    rows: tuple[Scalar, ...]
    columns: tuple[Scalar, ...]
    mean: tuple[tuple[float, ...], ...]


class AtEpoch(_Plain):
    """First-order indices at one epoch: a factor that only makes training faster is seen to fade.

    Attributes:
        epoch: the epoch.
        first_order: by factor.
    """

    epoch: int
    first_order: dict[str, Interval]


class SelfCheck(_Plain):
    """How well the surrogate predicts trials that it has not seen, and what it says about a factor that does nothing.

    Attributes:
        passed: whether all checks that could be made were passed.
        sentences: one per check, failures first.
        loo_r2: share of the variance of the completed trials' final metric that is predicted with each left out.
        loo_error: root mean square of those prediction errors, in the metric's unit.
        n_loo: number of completed trials that were left out one at a time.
        holdout_error: root mean square error on the trials that went on although the scheduler would have stopped them.
        n_holdout: number of those.
        coverage_50: share of the left-out finals within their 50 % band.
        coverage_90: share within their 90 % band.
        null_factor: total index of a built-in factor that nothing reads; must contain 0.
        unforeseen_share: part of the variance of all trials' first reports that lies in those far from what the others foresee.
    """

    passed: bool
    sentences: tuple[str, ...]
    loo_r2: float | None = None
    loo_error: float | None = None
    n_loo: int = 0
    holdout_error: float | None = None
    n_holdout: int = 0
    coverage_50: float | None = None
    coverage_90: float | None = None
    null_factor: Interval | None = None
    unforeseen_share: float | None = None


class Guideline(_Plain):
    """A finding to act on: what one value of a factor gains over another.

    Attributes:
        factor: the factor.
        condition: values of other factors under which this holds; empty where it is about all configurations.
        level: the factor's best value there.
        reference: the value that it is compared with.
        effect: the metric at `level` less that at `reference`, in the metric's unit.
        probability: that the effect has the sign of its value.
        n_trials: trials with a report near one of the two values, under the condition.
        sentence: all of this in words.
    """

    factor: str
    condition: dict[str, Scalar]
    level: Scalar
    reference: Scalar
    effect: Interval
    probability: float
    n_trials: int
    sentence: str


class Recommended(_Plain):
    """The configuration that is best by all trials together, which need not be one that was run.

    Attributes:
        config: the active factors.
        predicted: the metric there, a trial's own noise left out.
    """

    config: dict[str, Scalar]
    predicted: Interval


class Importance(_Plain):
    """Which factors matter for the metric at an epoch, under the declared distribution of the factors.

    Attributes:
        metric: the metric's name.
        mode: `max` or `min`.
        budget: the epoch T of a trial that is not stopped.
        at: the epoch that the indices are about.
        region: the part of the declared distribution that they are about, empty for all of it.
        of_best: whether the shares are of what sets the best configurations (`region`) apart instead of the variance.
        notes: what a reader must know first: failed checks, approximations, why something is not identified.
        shares: one per factor, the largest first-order index first.
        pairs: the interactions, largest first.
        effects: one per factor, in the order of `shares`.
        surfaces: the strongest interactions.
        epochs: the indices along training.
        check: the self-check; None where nothing could be fitted.
        n_trials: trials with at least one report.
        n_completed: trials that reached the budget.
        n_reports: reports used.
        n_diverged: trials that diverged or failed; they are not in the metric's variance.
        noise_share: share of the metric's variance that is neither factor nor interaction: seed and report noise.
        open_share: the uncertainty of the predicted metric, averaged over the configurations, as a share of its variance.
        integration_error: largest standard error of an index from the finite integration design.
        scale: the scale on which the surrogate works: `identity`, `logit` or `log`.
        plan: what would settle what is not settled.
        trouble: the same question for whether a trial diverges or fails; None where none did.
        guidelines: what to do, the largest effect first; none where the evidence is thin or the self-check failed.
        recommended: the best configuration by the model of all trials; None where that model is in doubt.
    """

    metric: str
    mode: Literal["max", "min"]
    budget: int
    at: int
    region: str = ""
    of_best: bool = False
    notes: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    pairs: tuple[Share, ...] = ()
    effects: tuple[Effect, ...] = ()
    surfaces: tuple[Surface, ...] = ()
    epochs: tuple[AtEpoch, ...] = ()
    check: SelfCheck | None = None
    n_trials: int = 0
    n_completed: int = 0
    n_reports: int = 0
    n_diverged: int = 0
    noise_share: float | None = None
    open_share: float | None = None
    integration_error: float | None = None
    scale: str = "identity"
    plan: Plan | None = None
    trouble: Importance | None = None
    guidelines: tuple[Guideline, ...] = ()
    recommended: Recommended | None = None

    @property
    def loo_r2(self) -> float | None:
        """Share of the variance of completed trials' final metric that is predicted with each left out; None if unknown."""
        return self.check.loo_r2 if self.check else None

    def table(self, *, interactions: bool = True) -> pa.Table:
        """Return one row per factor, largest first, then (with `interactions`) one per pair.

        Columns: factor (`a × b` for a pair), first_order, first_order_low, first_order_high, total, total_low, total_high (90 %
        intervals), probability_first, verdict. Null where nothing can be said, and in a pair's total.
        """
        import pyarrow as pa

        rows = [_row(share) for share in (*self.shares, *(self.pairs if interactions else ()))]
        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
        return pa.Table.from_pylist(rows, schema=schema)

    def figure(self) -> Figure:
        """Return a figure: the indices with their intervals, their course over epochs, and the effects of the first factors."""
        from raystudy.findings.figures import overview

        return overview(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what `raystudy importance --json` prints and importance.json holds."""
        return self.model_dump(mode="json") | {"loo_r2": self.loo_r2}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Importance:
        """Return the answer of which `to_dict` gave `data`; raise ValueError if that is something else."""
        return cls.model_validate({name: value for name, value in data.items() if name != "loo_r2"})

    def __str__(self) -> str:
        """Return the answer in sentences, what a reader must know first at the top."""
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the answer in sentences."""
        from raystudy.findings.sentences import sentences

        return sentences(self)


class Settling(_Plain):
    """What would settle one open question.

    Attributes:
        question: the open question, in words.
        trials: about how many more trials, run under the same rules; None if more trials of this kind would not do.
    """

    question: str
    trials: int | None


class Proposal(_Plain):
    """A configuration whose result would say most.

    Attributes:
        config: the active factors.
        uncertainty: standard deviation of the predicted metric there, in the metric's unit.
    """

    config: dict[str, Scalar]
    uncertainty: float


class Plan(_Plain):
    """What would settle what is not settled yet.

    Attributes:
        open: the questions that are open, each with the trials that it needs.
        proposals: where trials say most, best first.
    """

    open: tuple[Settling, ...]
    proposals: tuple[Proposal, ...]


_COLUMNS = {
    "factor": "string",
    "first_order": "float64",
    "first_order_low": "float64",
    "first_order_high": "float64",
    "total": "float64",
    "total_low": "float64",
    "total_high": "float64",
    "probability_first": "float64",
    "verdict": "string",
}


def _row(share: Share) -> dict[str, Any]:
    row: dict[str, Any] = {"factor": share.name, "probability_first": share.probability_first, "verdict": share.verdict}
    for name, interval in (("first_order", share.first_order), ("total", share.total)):
        row[name] = interval.value if interval else None
        row[f"{name}_low"] = interval.low if interval else None
        row[f"{name}_high"] = interval.high if interval else None
    return row


Importance.model_rebuild()
