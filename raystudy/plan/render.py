"""The plan as tables for a terminal: every decision about what to say was made before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from raystudy.data import ClassCount, DataSummary
from raystudy.plan.contents import BackbonePlan, CostPlan, DepthPlan, Plan, TimePlan
from raystudy.plan.words import hours_in_words, show

_MOST_CLASSES = 12
_MOST_DEPTHS = 24
_MOST_BAD = 5


def render(plan: Plan) -> Group:
    """Return the plan, section by section."""
    sections = [
        *_data(plan),
        *_backbones(plan),
        *_factors(plan),
        *_search(plan),
        *_cost(plan),
        *_warnings(plan),
    ]
    return Group(Rule(f"Plan of the study {plan.name}", align="left"), *sections)


def _data(plan: Plan) -> Iterator[RenderableType]:
    data = plan.data
    yield _heading("Data", plan.source)
    sizes = {"training": data.train, "validation": data.validation, "test": data.test}
    yield _line(
        f"{sum(sizes.values()):,} images of {len(data.classes)} classes: "
        + ", ".join(f"{count:,} {name}" for name, count in sizes.items() if count)
    )
    if data.original_sizes:
        small, middle, large = data.original_sizes
        before = f"{small} px" if small == large else f"{small} to {large} px, median {middle}"
        yield _line(f"decoded to {data.image_size} × {data.image_size} px; shorter sides before: {before}")
    yield _indented(_class_table(data))
    yield from _bad_images(data)
    for warning in data.warnings:
        yield _warning(warning)


def _class_table(data: DataSummary) -> Table:
    table = _table("class", ">training", ">validation", *([">test"] if data.test else []))
    shown: Sequence[ClassCount | None] = data.classes
    if len(data.classes) > _MOST_CLASSES:
        ordered = sorted(data.classes, key=lambda count: (-count.train, count.name))
        half = _MOST_CLASSES // 2
        shown = [*ordered[:half], None, *ordered[-half:]]
    for count in shown:
        if count is None:
            table.add_row(f"… {len(data.classes) - _MOST_CLASSES} more, by size", style="dim")
        else:
            numbers = (count.train, count.validation, count.test)
            table.add_row(Text(count.name), *(f"{number:,}" for number in numbers[: len(table.columns) - 1]))
    return table


def _bad_images(data: DataSummary) -> Iterator[RenderableType]:
    if not data.bad:
        return
    yield _line(f"skipped {len(data.bad):,} that cannot be read:")
    for image in data.bad[:_MOST_BAD]:
        yield _line(f"  {image.name}: {image.reason}", style="dim")
    if len(data.bad) > _MOST_BAD:
        yield _line(f"  … and {len(data.bad) - _MOST_BAD:,} more", style="dim")


def _backbones(plan: Plan) -> Iterator[RenderableType]:
    """Describe each backbone; source models of one architecture differ in their weights only, so the rest is said once."""
    described: dict[tuple[DepthPlan, ...], str] = {}
    for backbone in plan.backbones:
        if (same := described.setdefault(backbone.depths, backbone.name)) == backbone.name:
            yield from _backbone(backbone)
        else:
            yield _heading("Backbone", backbone.name)
            yield _line(f"weights: {backbone.weights}; all else as for {same}")


def _backbone(backbone: BackbonePlan) -> Iterator[RenderableType]:
    yield _heading("Backbone", backbone.name)
    yield _line(
        f"{backbone.n_units} units, {_count(backbone.parameters)} parameters; new head with {_count(backbone.head_parameters)}"
    )
    weights = "random" if backbone.weights == "none" else f"{backbone.weights}, pretrained at {backbone.pretrained_size} px"
    yield _line(f"weights: {weights}, here {backbone.image_size} px")
    rows = _spread(backbone.depths, _MOST_DEPTHS)
    table = _table(">depth", "freezes up to unit", ">unit has", ">frozen", ">share", ">trained + head")
    for row in rows:
        table.add_row(*_depth_cells(row, backbone.n_units), style="" if row.in_study else "dim")
    yield _indented(table)
    if note := _depth_note(backbone, len(rows)):
        yield _line(note, style="dim")


def _depth_cells(row: DepthPlan, n_units: int) -> tuple[Text, ...]:
    name = {0: "none (full fine-tuning)", n_units: f"{row.unit} (linear probe)"}.get(row.depth, row.unit)
    size = _count(row.unit_parameters) if row.depth else ""
    share = f"{100 * row.frozen_share:.0f} %"
    return tuple(map(Text, (str(row.depth), name, size, _count(row.frozen), share, _count(row.trained))))


def _depth_note(backbone: BackbonePlan, shown: int) -> str:
    notes = []
    if shown < len(backbone.depths):
        notes.append(f"{shown} of {len(backbone.depths)} depths are shown, --json has all")
    used = [row.depth for row in backbone.depths if row.in_study]
    if len(used) < len(backbone.depths):
        is_range = len(used) > 2 and used == list(range(used[0], used[-1] + 1))
        depths = f"{used[0]} to {used[-1]}" if is_range else ", ".join(map(str, used))
        notes.append(f"this study has frozen depth {depths}")
    return "; ".join(notes)


def _factors(plan: Plan) -> Iterator[RenderableType]:
    yield _heading("Factors", f"{len(plan.factors)} vary")
    conditional = any(factor.condition for factor in plan.factors)
    table = _table("factor", "values", "role", *(["only when"] if conditional else []))
    for factor in plan.factors:
        style = "bold" if factor.role == "scientific" else ""
        cells = (Text(factor.name), Text(factor.values), Text(factor.role, style=style), Text(factor.condition))
        table.add_row(*cells[: len(table.columns)])
    yield _indented(table)
    if plan.fixed:
        yield _line("fixed: " + ", ".join(f"{name} {show(value)}" for name, value in plan.fixed.items()))


def _search(plan: Plan) -> Iterator[RenderableType]:
    metric, mode = plan.objective
    yield _heading("Search", f"{metric}, {mode}imise")
    yield _pairs([*_sampler_rows(plan), *_stopping_rows(plan)])


def _sampler_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    search = plan.search
    words = [f"{search.sampler}, seed {search.seed}"]
    if search.startup_trials is not None:
        words.append(f"the first {min(search.startup_trials, plan.trials):,} trials are random")
    if search.explore:
        words.append(f"of the others {search.explore:.0%} too, for the sake of the findings")
    if search.grid_points is not None:
        words.append(f"{search.grid_points:,} grid points")
    yield "sampler", "; ".join(words)
    if search.points:
        yield "start points", f"{search.points:,} from the study file come first"


def _stopping_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    stopping = plan.stopping
    if stopping is None or not stopping.rungs:
        yield "early stopping", "none"
        return
    rungs = ", ".join(map(str, stopping.rungs))
    yield "early stopping", f"asha, rungs at epoch {rungs}; the best 1 of {stopping.reduction} goes on"
    low, high = (f"{count:.3g}" for count in stopping.trials_per_cell)
    if stopping.within:
        each = f"about {low}" if low == high else f"about {low} to {high}"
        yield "compared within", f"{' × '.join(stopping.within)}: {_plural(stopping.cells, 'cell')} of {each} trials"
    else:
        yield "compared within", f"all {plan.trials:,} trials"
    share = f"{100 * stopping.keep:g} % of those that would be stopped go on"
    yield "hold-outs", f"{share}: about {plan.forecast.hold_outs:.1f} trials" if stopping.keep else "none"


def _cost(plan: Plan) -> Iterator[RenderableType]:
    yield _heading("Cost", f"{_plural(plan.trials, 'trial')} of up to {_plural(plan.epochs, 'epoch')}")
    yield _pairs([*_epoch_rows(plan), *_time_rows(plan.time), *_cost_rows(plan.cost), *_budget_rows(plan)])


def _epoch_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    few, many = plan.steps_per_epoch
    yield "an epoch", _plural(few, "optimiser step") if few == many else f"{few:,} to {many:,} optimiser steps"
    yield "without stopping", _plural(plan.epochs_without_stopping, "epoch")
    if plan.stopping is None or not plan.stopping.rungs:
        return
    outlook = plan.forecast
    low, high = outlook.epochs_range
    share = 100 * outlook.epochs / plan.epochs_without_stopping
    yield "with stopping", f"about {outlook.epochs:,.0f} epochs ({share:.0f} %), 90 % range {low:,.0f} to {high:,.0f}"
    arrivals = zip(plan.stopping.rungs, outlook.arrivals, strict=True)
    stops = [f"{count:,.0f} report epoch {rung}" for rung, count in arrivals]
    yield "expected trials", ", ".join([*stops, f"{outlook.completed:,.0f} reach the budget"])


def _time_rows(time: TimePlan | None) -> Iterator[tuple[str, str]]:
    if time is None:
        yield "time and cost", "not estimated (no probe)"
        return
    fast, slow = time.fastest_epoch_seconds, time.slowest_epoch_seconds
    spread = "" if slow < 1.1 * fast else f" ({_duration(fast)} to {_duration(slow)})"
    what = f"{time.device}, {time.precision}" + (f", on {time.node}" if time.node else "")
    yield "measured", f"{what}: about {_duration(time.epoch_seconds)} an epoch{spread}"
    where = "time on cluster" if time.node else "time here"
    span = _span(*map(_duration, time.seconds_range))
    yield where, f"about {_duration(time.seconds)}{span}, {_plural(time.concurrent, 'trial')} at a time"


def _cost_rows(cost: CostPlan | None) -> Iterator[tuple[str, str]]:
    if cost is None:
        return
    hours = f"about {hours_in_words(cost.hours)}{_span(*map(hours_in_words, cost.hours_range))}"
    whole = hours_in_words(cost.hours_without_stopping)
    is_stopped = cost.hours < cost.hours_without_stopping
    yield cost.unit, hours + (f", {whole} without stopping" if is_stopped else "")
    if cost.money is None or cost.money_range is None or cost.money_without_stopping is None:
        return
    money = f"about {_money(cost.money)}{_span(*map(_money, cost.money_range))}"
    whole = f", {_money(cost.money_without_stopping)} without stopping" if is_stopped else ""
    yield "money", f"{money}{whole}, at {cost.price:,.12g} a GPU-hour"


def _budget_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.hours is not None:
        yield "time budget", f"{plan.hours:g} h"
    if plan.gpu_hours is not None:
        yield "GPU budget", f"{plan.gpu_hours:,.12g} GPU-hours"


def _warnings(plan: Plan) -> Iterator[RenderableType]:
    if plan.warnings:
        yield _heading("Will it answer the question?", "")
    for warning in plan.warnings:
        yield _warning(warning)


def _heading(title: str, subject: str) -> RenderableType:
    return Padding(Text.assemble((title, "bold cyan"), "  ", (subject, "bold")), (1, 0, 0, 0))


def _line(text: str, *, style: str = "") -> RenderableType:
    return _indented(Text(text, style=style))


def _warning(text: str) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_row(Text("!", style="bold yellow"), Text(text, style="yellow"))
    return _indented(table)


def _indented(content: RenderableType) -> RenderableType:
    return Padding(content, (0, 0, 0, 2))


def _table(*columns: str) -> Table:
    """Return an empty table; a column whose title begins with `>` is aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _pairs(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Return names with what is said about them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in rows:
        table.add_row(Text(name), Text(text))  # not plain str, which rich would search for markup
    return _indented(table)


def _spread(rows: Sequence[DepthPlan], most: int) -> Sequence[DepthPlan]:
    """Return at most `most` rows, the first and the last among them, evenly spread."""
    if len(rows) <= most:
        return rows
    return [rows[round(index * (len(rows) - 1) / (most - 1))] for index in range(most)]


def _count(number: int) -> str:
    """Return a number of parameters with three digits: 928, 83.2 k, 3.37 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return str(number)


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _span(low: str, high: str) -> str:
    return "" if low == high else f" ({low} to {high})"


def _money(amount: float) -> str:
    """Return an amount in whatever currency the price is in."""
    return f"{amount:,.2f}"


def _duration(seconds: float) -> str:
    """Return a duration with about two digits: 0.24 s, 95 s, 12 min, 3.5 h, 4.2 days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            amount = seconds / size
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
