"""An answer as pictures: what matters, how that changes along training, and what each factor does.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; what is not known is grey and hatched.
No pyplot: figures belong to whoever asks for them, and nothing needs a screen.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter

from raystudy.factors import Scalar
from raystudy.findings.answer import Effect, Importance, Interval, Share, Surface
from raystudy.findings.sentences import cautions, text_of

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 1)))
"""Of the lines along training, so that they differ on grey paper too."""
_OTHER = "#5F5F5F"
_UNKNOWN, _WARNING = "#8A8A8A", "#B00020"
_TOTAL_ALPHA, _BAND_ALPHA = 0.4, 0.18
_WIDTH, _MOST_EFFECTS, _MOST_PAIRS, _LONGEST = 11.0, 4, 3, 30
_ROW_HEIGHT, _FEWEST_ROWS, _PANEL_HEIGHT = 0.42, 3, 2.9
_DPI = 130
_MOST_CURVES = 300
"""Learning curves beyond which they are drawn as an image: as lines they would take megabytes."""


def overview(answer: Importance) -> Figure:
    """Return the whole answer as a figure: shares, their course over epochs, effects of the first factors."""
    colours, pairs, effects, notes = _colours(answer), _shown_pairs(answer), _shown_effects(answer), _note_lines(answer)
    has_course = len(answer.epochs) > 1 and bool(_identified(answer))
    rows = max(len(answer.shares) + len(pairs), _FEWEST_ROWS)
    heights = [0.55 + 0.2 * len(notes), max(_PANEL_HEIGHT if has_course else 0.0, 0.8 + _ROW_HEIGHT * rows)]
    heights += [_PANEL_HEIGHT] if effects else []
    figure = _figure(_WIDTH, sum(heights))
    head, upper, *lower = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_head(head, answer, notes, heights[0])
    widths = (1.15, 1) if has_course else (1,)
    left, *right = upper.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _draw_shares(left, answer, pairs, colours, rows, longest=66 if has_course else 120)
    for axes in right:
        _draw_course(axes, answer, colours)
    for panel in lower:
        _draw_effects(panel, answer, effects, colours)
    return figure


def surface(surface: Surface, metric: str = "") -> Figure:
    """Return the metric over two factors as a heat map."""
    figure = _figure(6.4, 4.8)
    axes = figure.subplots()
    image = axes.imshow(np.array(surface.mean).T, origin="lower", aspect="auto", cmap="viridis", interpolation="nearest")
    for axis, name, values in (
        (axes.xaxis, surface.factors[0], surface.rows),
        (axes.yaxis, surface.factors[1], surface.columns),
    ):
        places = range(0, len(values), -(-len(values) // 8))
        axis.set_ticks(list(places), [_short(text_of(values[place]), 14) for place in places])
        axis.set_label_text(name)
    axes.tick_params(axis="x", labelrotation=30 if len(surface.rows) > 4 else 0)
    figure.colorbar(image, ax=axes, label=f"{metric or 'mean'}, averaged over all other factors")
    return figure


def notice(text: str) -> Figure:
    """Return a figure that says why there is none."""
    lines = textwrap.wrap(text, 110)
    figure = _figure(_WIDTH, 0.6 + 0.25 * len(lines))
    figure.text(0.02, 0.5, "\n".join(lines), va="center", color=_WARNING)
    return figure


def trial_curves(curves: Sequence[tuple[str, bool, Sequence[tuple[int, float]]]], best: str, metric: str) -> Figure:
    """Return the learning curves of all trials: stopped ones grey, the best one on top.

    Args:
        curves: id of the trial, whether it was trained to its end, and (epoch, metric) in order.
        best: id of the best trial, empty for none.
        metric: its name.
    """
    figure = _figure(7.5, 3.4)
    axes = figure.subplots()
    for trial_id, is_complete, points in sorted(curves, key=lambda curve: (curve[0] == best, curve[1])):
        epochs, values = np.array(points).T
        colour, width, alpha = (_COLOURS[0], 0.9, 0.5) if is_complete else ("#A8A8A8", 0.7, 0.6)
        if trial_id == best:
            colour, width, alpha = _COLOURS[1], 2.2, 1.0
        marker = "o" if len(points) == 1 else None
        axes.plot(
            epochs, values, color=colour, linewidth=width, alpha=alpha, marker=marker, markersize=2.5,
            rasterized=len(curves) > _MOST_CURVES and trial_id != best,
        )  # fmt: skip
    keys = [
        Line2D([], [], color="#A8A8A8", label="did not reach the last epoch"),
        Line2D([], [], color=_COLOURS[0], label="completed"),
        *([Line2D([], [], color=_COLOURS[1], linewidth=2.2, label=f"best: {_short(best)}")] if best else []),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(_short(metric))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.7)
    return figure


def as_svg(figure: Figure) -> bytes:
    """Return a figure as a picture that pages can hold."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", dpi=_DPI)
    return file.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the ending of `path` names."""
    figure.savefig(path, dpi=_DPI)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_head(panel: Any, answer: Importance, notes: Sequence[str], height: float) -> None:
    where = f", {'' if answer.of_best else 'where '}{answer.region}" if answer.region else ""
    trials = f"{answer.n_trials} trial{'' if answer.n_trials == 1 else 's'}, {answer.n_completed} to epoch {answer.budget}"
    lines = [
        (_short(f"What matters for {answer.metric} at epoch {answer.at}{where}", 105), {"fontsize": 12, "fontweight": "bold"}),
        (f"{trials}; whiskers and bands: 90 %" if _is_drawn(answer) else trials, {"fontsize": 9, "color": _OTHER}),
        *((note, {"fontsize": 9, "color": _WARNING}) for note in notes),
    ]
    for number, (text, style) in enumerate(lines):
        panel.text(0.01, 1 - (0.08 + 0.2 * number + (0.05 if number else 0)) / height, text, va="top", ha="left", **style)


def _note_lines(answer: Importance) -> list[str]:
    """Return what stands above everything if the self-check failed, or if there is nothing to draw."""
    failed = answer.check is not None and not answer.check.passed
    if not failed and _is_drawn(answer):
        return []
    first = list(cautions(answer))[:2]
    return [line for text in first for line in textwrap.wrap(text, 150)][:4]


def _is_drawn(answer: Importance) -> bool:
    """Whether there is a bar to draw."""
    return bool(_identified(answer))


def _identified(answer: Importance) -> list[str]:
    """Return the factors of which something is drawn."""
    return [share.name for share in answer.shares if _intervals(share)]


def _intervals(share: Share) -> list[Interval]:
    """Return what is drawn of a share: nothing if it is not identified, however much is known about its ends."""
    if share.verdict == "not identified":
        return []
    return [interval for interval in (share.first_order, share.total) if interval]


def _colours(answer: Importance) -> dict[str, str]:
    """Return the colours of the factors that get one of their own: the largest at any epoch."""
    peaks = {share.name: share.first_order.value for share in answer.shares if share.first_order and _intervals(share)}
    for row in answer.epochs:
        for name, interval in row.first_order.items():
            if name in peaks:
                peaks[name] = max(peaks[name], interval.value)
    largest = sorted(peaks, key=lambda name: -peaks[name])[: len(_COLOURS)]
    ordered = [share.name for share in answer.shares if share.name in largest]
    return dict(zip(ordered, _COLOURS, strict=False))


def _short(text: str, longest: int = _LONGEST) -> str:
    """Leave out the middle of a long text: names of one family differ at their ends."""
    kept = longest - 1
    return text if len(text) <= longest else f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"


# Shares


def _shown_pairs(answer: Importance) -> list[Share]:
    important = [pair for pair in answer.pairs if pair.verdict == "important" and pair.first_order]
    return important[:_MOST_PAIRS]


def _draw_shares(
    axes: Axes, answer: Importance, pairs: Sequence[Share], colours: dict[str, str], n_rows: int, *, longest: int
) -> None:
    rows = [*answer.shares, *pairs]
    ends = [interval.high for share in rows for interval in _intervals(share)]
    right = 1.25 * max(ends) if ends and max(ends) > 0 else 1.0
    for place, share in enumerate(rows):
        if intervals := _intervals(share):
            _draw_share(axes, place, share, colours.get(share.name, _OTHER))
            end = max(interval.high for interval in intervals)
            axes.text(end + 0.015 * right, place, share.verdict, va="center", fontsize=8, color=_OTHER)
        else:
            _draw_unknown(axes, place, share, right, longest)
    if pairs:
        axes.axhline(len(answer.shares) - 0.5, color="#D0D0D0", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_name(share) for share in rows])
    axes.set_ylim(n_rows - 0.4, -0.6)
    axes.set_xlim(0, right)
    axes.spines[["top", "right"] if ends else ["top", "right", "bottom"]].set_visible(False)
    axes.xaxis.set_visible(bool(ends))
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in MaxNLocator(5).tick_values(0, right) if 0 <= tick <= 1]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if right > 0.06 else 1, symbol=" %"))
    axes.set_xlabel("share of the variance")
    if ends:
        keys = [Patch(color=_OTHER, label="alone"), Patch(color=_OTHER, alpha=_TOTAL_ALPHA, label="with all interactions")]
        axes.legend(handles=keys, loc="lower right", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")


def _name(share: Share) -> str:
    """Return the label of a row; a pair takes two lines."""
    return _short(share.name) if len(share.factors) == 1 else " ×\n".join(_short(name) for name in share.factors)


def _draw_share(axes: Axes, place: int, share: Share, colour: str) -> None:
    thickness = 0.34
    is_pair = len(share.factors) == 2
    if share.first_order:
        middle = place if is_pair or not share.total else place - thickness / 2
        _bar(axes, middle, share.first_order, colour, thickness, 1.0)
    if share.total:
        middle = place if not share.first_order else place + thickness / 2
        _bar(axes, middle, share.total, colour, thickness, _TOTAL_ALPHA)


def _bar(axes: Axes, place: float, interval: Interval, colour: str, thickness: float, alpha: float) -> None:
    axes.barh(place, interval.value, thickness, color=colour, alpha=alpha, linewidth=0)
    axes.plot((interval.low, interval.high), (place, place), color="black", linewidth=1.1, solid_capstyle="butt")
    axes.plot((interval.low, interval.high), (place, place), color="black", linestyle="none", marker="|", markersize=5)


def _draw_unknown(axes: Axes, place: int, share: Share, right: float, longest: int) -> None:
    axes.barh(place, right, 0.6, facecolor="#F4F4F4", edgecolor="#DADADA", hatch="////", linewidth=0)
    reason = f": {share.reason}" if share.reason else ""
    text = _short(f"not identified{reason}", longest)
    box = {"facecolor": "#F4F4F4", "edgecolor": "none", "pad": 1.0}
    axes.text(0.02 * right, place, text, va="center", fontsize=8, color="#4A4A4A", style="italic", bbox=box)


# Along training


def _draw_course(axes: Axes, answer: Importance, colours: dict[str, str]) -> None:
    epochs = np.array([row.epoch for row in answer.epochs])
    names = _identified(answer)
    for name in sorted(names, key=lambda name: name in colours):
        values = _columns([row.first_order.get(name) for row in answer.epochs])
        if np.isnan(values).all():
            continue
        if name in colours:
            style = _STYLES[list(colours).index(name) % len(_STYLES)]
            axes.fill_between(epochs, values[1], values[2], color=colours[name], alpha=_BAND_ALPHA, linewidth=0)
            axes.plot(epochs, values[0], color=colours[name], linestyle=style, linewidth=1.8, label=_short(name))
        else:
            axes.plot(epochs, values[0], color="#C8C8C8", linewidth=0.9, zorder=1)
    axes.axvline(answer.at, color=_OTHER, linewidth=0.8, linestyle=(0, (1, 2)))
    _epoch_axis(axes, epochs)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylabel("share of the variance, alone")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    order = [labels.index(_short(name)) for name in colours if _short(name) in labels]
    axes.legend(
        [handles[k] for k in order], [labels[k] for k in order], fontsize=8, frameon=False, loc="lower left",
        bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2, handlelength=2.6,
    )  # fmt: skip


def _columns(course: Sequence[Interval | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return values, low and high ends, shape (3, n), nan where there is none."""
    return np.array([(one.value, one.low, one.high) if one else (np.nan,) * 3 for one in course]).T


def _epoch_axis(axes: Axes, epochs: np.ndarray[Any, Any]) -> None:
    axes.set_xscale("log")
    shown = [int(epochs[0])]
    for epoch in epochs[1:]:
        if epoch / shown[-1] >= (epochs[-1] / epochs[0]) ** 0.09:
            shown.append(int(epoch))
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.set_xlabel("epoch")


# Effects


def _shown_effects(answer: Importance) -> list[Effect]:
    """Return the effects that are drawn; of a factor that is not identified there is nothing to show."""
    known = _identified(answer)
    return [effect for effect in answer.effects if effect.factor in known and effect.levels][:_MOST_EFFECTS]


def _draw_effects(panel: Any, answer: Importance, effects: Sequence[Effect], colours: dict[str, str]) -> None:
    columns = panel.subplots(1, max(len(effects), 2), sharey=True, squeeze=False)[0]
    has_profile = False
    for axes, effect in zip(columns, effects, strict=False):
        colour = colours.get(effect.factor, _OTHER)
        has_profile |= _draw_effect(axes, effect, colour)
        axes.set_xlabel(_short(effect.factor), color=colour if effect.factor in colours else "black")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#EBEBEB", linewidth=0.7)
        axes.set_axisbelow(True)
    for axes in columns[len(effects) :]:
        axes.set_visible(False)
    columns[0].set_ylabel(answer.metric)
    keys = [Line2D([], [], color=_OTHER, linewidth=1.8, marker="o", markersize=4, label="mean over all other factors")]
    if has_profile:
        label = "best: nuisance factors tuned for each value"
        keys.append(
            Line2D([], [], color=_OTHER, linestyle="--", marker="D", markersize=4, markerfacecolor="white", label=label)
        )
    panel.legend(handles=keys, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _draw_effect(axes: Axes, effect: Effect, colour: str) -> bool:
    """Draw one factor's effect; return whether its profile differs from its mean."""
    places = _places(axes, effect)
    mean = _columns([level.mean for level in effect.levels])
    profile = _columns([level.profile for level in effect.levels])
    differs = not np.allclose(mean, profile, rtol=0, atol=1e-9)
    if effect.scale == "categorical" or len(places) == 1:
        _whiskers(axes, places - (0.1 if differs else 0), mean, colour, "o", colour)
        if differs:
            _whiskers(axes, places + 0.1, profile, colour, "D", "white")
        return differs
    axes.fill_between(places, mean[1], mean[2], color=colour, alpha=_BAND_ALPHA, linewidth=0)
    axes.plot(places, mean[0], color=colour, linewidth=1.8, marker="o" if effect.scale == "ordered" else None, markersize=3)
    if differs:
        axes.plot(places, profile[0], color=colour, linewidth=1.5, linestyle="--")
    return differs


def _whiskers(axes: Axes, places: Any, values: Any, colour: str, marker: str, fill: str) -> None:
    spread = np.abs(values[1:] - values[0])
    axes.errorbar(
        places, values[0], yerr=spread, color=colour, fmt=marker, markersize=5.5, markerfacecolor=fill, capsize=2.5,
        elinewidth=1.1,
    )  # fmt: skip


def _places(axes: Axes, effect: Effect) -> np.ndarray[Any, Any]:
    """Return where the levels lie on the axis, which is set up for them."""
    values = [level.value for level in effect.levels]
    if effect.scale == "categorical" or not all(_is_number(value) for value in values):
        labels = [_short(text_of(value), 16) for value in values]
        is_crowded = sum(map(len, labels)) > 26
        axes.set_xticks(range(len(values)), labels, rotation=25 if is_crowded else 0, ha="right" if is_crowded else "center")
        axes.set_xlim(-0.6, len(values) - 0.4)
        return np.arange(len(values), dtype=float)
    if effect.scale == "log":
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=all(isinstance(value, int) for value in values)))
    return np.array(values, dtype=float)


def _is_number(value: Scalar) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
