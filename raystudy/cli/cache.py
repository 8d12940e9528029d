"""The command that looks after this machine's cache."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from raystudy.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from raystudy.cache import EntryInfo


@click.group(invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> None:
    """Look at or empty this machine's cache: decoded images, activations of frozen layers. All of it can be made again."""
    if context.invoked_subcommand is None:
        context.invoke(list_, as_json=False)


@cache.command("ls")
@options.as_json
def list_(as_json: bool) -> None:
    """List what the cache holds, the most recently used first."""
    from raystudy import paths
    from raystudy.cache import Cache, sizes

    found = Cache(paths.cache())
    entries, limit = found.entries(), found.limit
    total = sum(entry.size for entry in entries)
    if as_json:
        options.print_json(
            {"folder": str(found.folder), "limit": limit, "size": total, "entries": [_to_dict(entry) for entry in entries]}
        )
        return
    if entries:
        options.show(_table(entries))
    count = f"{len(entries)} entries" if len(entries) != 1 else "1 entry"
    click.echo(f"{found.folder}: {count}, {sizes.in_words(total)} of at most {sizes.in_words(limit)}")


@cache.command()
@click.option("--kind", metavar="KIND", help="Only entries of this kind, such as decoded.")
def clear(kind: str | None) -> None:
    """Remove what no running process uses; it is made again when it is needed."""
    from raystudy import paths
    from raystudy.cache import Cache, sizes

    found = Cache(paths.cache())
    freed = found.clear(kind)
    kept = [entry for entry in found.entries() if kind in (None, entry.kind)]
    in_use = f"; {len(kept)} in use were kept, {sizes.in_words(sum(entry.size for entry in kept))}" if kept else ""
    click.echo(f"{found.folder}: {sizes.in_words(freed)} freed{in_use}")


def _table(entries: list[EntryInfo]) -> Table:
    from raystudy.cache import sizes
    from raystudy.cli.tables import new_table

    table = new_table("kind", "what", "size", "last used", "in use")
    for entry in entries:
        used = _time(entry.last_used).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.kind, _what(entry), sizes.in_words(entry.size), used, "yes" if entry.in_use else "")
    return table


def _what(entry: EntryInfo) -> str:
    """Say in a line what the entry says about itself, its key if it says nothing; long lists are left to `--json`."""
    facts = {name: fact for name, fact in entry.about.items() if isinstance(fact, str | int | float)}
    return ", ".join(f"{name} {fact}" for name, fact in facts.items()) or entry.key


def _to_dict(entry: EntryInfo) -> dict[str, Any]:
    return asdict(entry) | {"created": _time(entry.created).isoformat(), "last_used": _time(entry.last_used).isoformat()}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()
