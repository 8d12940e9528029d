"""What matters, for the screen: what must be known first, a table with a bar for each factor, and the rest in sentences."""

from __future__ import annotations

from itertools import chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raystudy.cli.tables import new_table
from raystudy.findings.answer import Importance, Interval, Share
from raystudy.findings.sentences import advice, amount, cautions, percent, statements

_BAR = 16
_VERDICT_STYLES = {"important": "green", "minor": "", "not identified": "yellow"}


def shown(answer: Importance, *, interactions: bool) -> RenderableType:
    """Return what `raystudy importance` shows."""
    where = f", {'' if answer.of_best else 'where '}{answer.region}" if answer.region else ""
    parts: list[RenderableType] = [Text(f"{answer.metric} at epoch {answer.at}{where}", style="bold")]
    parts += [Text(line, style="yellow") for line in cautions(answer)]
    if answer.shares:
        parts += [Text(), importance_table(answer, interactions=interactions), Text()]
    parts += [Text(line) for line in chain(statements(answer), advice(answer))]
    return Group(*parts)


def importance_table(answer: Importance, *, interactions: bool) -> Table:
    """Return one row per factor and, with `interactions`, one per pair.

    The bar shows what the factor explains alone (thick) and with all its interactions, in all (thin).
    """
    table = new_table("factor", "", "alone", "in all", "first", "verdict")
    for column in table.columns[1:]:
        column.no_wrap = True
    for column in table.columns[2:5]:
        column.justify = "right"
    shares = (*answer.shares, *(answer.pairs if interactions else ()))
    known = [share for share in shares if share.verdict != "not identified"]
    longest = max((interval.value for share in known for interval in (share.first_order, share.total) if interval), default=0)
    for share in shares:
        first = "" if share.probability_first is None else percent(share.probability_first)
        verdict = Text(share.verdict, style=_VERDICT_STYLES[share.verdict])
        bar, alone, whole = _bar(share, longest), _cell(share, share.first_order), _cell(share, share.total)
        table.add_row(share.name, bar, alone, whole, first, verdict)
    return table


def _cell(share: Share, interval: Interval | None) -> str:
    """Return a share in per cent with the ends of its interval; only those where it is not identified."""
    if interval is None:
        return ""
    value, low, high = (amount(number).replace("under ", "<") for number in (interval.value, interval.low, interval.high))
    return f"({low} to {high})" if share.verdict == "not identified" else f"{value} % ({low} to {high})"


def _bar(share: Share, longest: float) -> Text:
    """Draw a factor's shares on the scale of the longest; nothing where nothing is known."""
    if longest <= 0 or share.verdict == "not identified":
        return Text()
    alone = round(_BAR * share.first_order.value / longest) if share.first_order else 0
    whole = round(_BAR * share.total.value / longest) if share.total else alone
    return Text.assemble(("━" * alone, "cyan"), ("─" * max(0, whole - alone), "cyan"))
