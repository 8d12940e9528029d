"""What fine-tuning changed in a network, as a picture: each measure by unit and epoch, and the features before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raystudy.findings.readouts import PER_UNIT, ReadOut

_TITLES = {
    "weight_change": "weight change\n|W − W₀| / |W₀|",
    "angle": "angle of scale-free\nweights, degrees",
    "cka": "linear CKA of outputs\nwith the start",
    "dead": "share of\ndead channels",
    "selectivity": "class selectivity\nof channels",
}
_LIMITS: dict[str, tuple[float, float | None]] = {"cka": (0.0, 1.0), "selectivity": (0.0, 1.0)}
"""Ends of the colour scales; the others begin at 0 and end at the largest value."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dvx"
_UNKNOWN = "#C8C8C8"
_MOST_NAMED, _LONGEST = 36, 22


def readout_figure(readouts: Sequence[ReadOut], classes: Sequence[str] = (), *, title: str = "") -> Figure:
    """Return the figure of a trial's read-outs, by epoch.

    Args:
        readouts: at least one.
        classes: the names of the labels, for the legend.
        title: of the whole.
    """
    height = 1.6 + 0.17 * min(len(readouts[0].units), 60)
    figure = Figure(figsize=(13.0, height + 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, 4.8))[:, 0]
    for axes, measure in zip(upper.subplots(1, len(PER_UNIT), sharey=True), PER_UNIT, strict=True):
        _draw_measure(upper, axes, readouts, measure)
    shown = [readouts[0], readouts[-1]] if len(readouts) > 1 else [readouts[0]]
    for axes, readout in zip(lower.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw_embedding(axes, readout, classes)
    handles, labels = lower.axes[0].get_legend_handles_labels()
    if classes and len(labels) <= _MOST_NAMED:
        lower.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False, ncols=1 + len(labels) // 19)
    return figure


def _draw_measure(figure: Figure, axes: Axes, readouts: Sequence[ReadOut], measure: str) -> None:
    rows = [[np.nan if value is None else value for value in readout.values(measure)] for readout in readouts]
    values = np.ma.masked_invalid(np.array(rows, dtype=float).T)
    low, high = _LIMITS.get(measure, (0.0, None))
    colours = colormaps["viridis"].with_extremes(bad=_UNKNOWN)
    top = high if high is not None else max(float(values.max()) if values.count() else 0.0, 1e-12)
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=top, interpolation="nearest")
    axes.set_title(_TITLES[measure], fontsize=9)
    axes.set_xticks(range(len(readouts)), [str(readout.epoch) for readout in readouts], fontsize=8)
    axes.set_xlabel("epoch", fontsize=8)
    units = readouts[0].units
    step = -(-len(units) // 40)
    places = range(0, len(units), step)
    axes.set_yticks(places, [f"{units[place][:_LONGEST]}  {place:02d}" for place in places], fontsize=7)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=7)


def _draw_embedding(axes: Axes, readout: ReadOut, classes: Sequence[str]) -> None:
    points, labels = np.array(readout.embedding).reshape(-1, 2), np.array(readout.labels)
    for place, label in enumerate(np.unique(labels)):
        own = points[labels == label]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=22,
            alpha=0.85,
            color=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place // len(_COLOURS) % len(_MARKERS)],
            label=str(classes[label])[:_LONGEST] if label < len(classes) else str(label),
        )
    when = f"after epoch {readout.epoch}" if readout.epoch else "before fine-tuning"
    score = "no score" if readout.separability is None else f"silhouette {readout.separability:.2f}"
    axes.set_title(f"features {when}: {score}", fontsize=10)
    axes.set_xlabel(f"{readout.explained[0]:.0%} of the variance", fontsize=8)
    axes.set_ylabel(f"{readout.explained[1]:.0%} of the variance", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
