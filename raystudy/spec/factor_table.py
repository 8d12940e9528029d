"""The documentation's table of factors, generated from the catalogue.

python -m raystudy.spec.factor_table > docs/factors.md
"""

from __future__ import annotations

from raystudy.factors import FACTORS, FactorInfo

_HEAD = """# Factors

What a study may vary (`factors:`) or fix (`fixed:`). Generated from the catalogue by `python -m raystudy.spec.factor_table`.

| factor | values | default | role | what it does | source |
|---|---|---|---|---|---|
"""


def factor_table() -> str:
    """Return the page with one row per factor."""
    return _HEAD + "".join(_row(info) for info in FACTORS.values())


def _row(info: FactorInfo) -> str:
    condition = "".join(f" Only with {name} = {value}." for name, value in info.applies.items())
    default = str(info.default).lower() if info.kind == "bool" else str(info.default)
    cells = (f"`{info.name}`", info.accepted(), default, info.role, info.doc + condition, info.source)
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    print(factor_table(), end="")
