"""What a study is going to do and what it will cost, before anything starts: what `raystudy validate` shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raystudy.plan.contents import Plan
from raystudy.plan.cost import Room
from raystudy.plan.planning import make_plan

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Plan", "Room", "make_plan", "plan_to_dict", "render_plan"]


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data, for `--json`."""
    return asdict(plan)


def render_plan(plan: Plan) -> Group:
    """Return the plan as tables and text, for a terminal of 80 columns or more."""
    from raystudy.plan.render import render  # rich is needed only where something is drawn

    return render(plan)
