"""Events as lines of text, for whoever watches a study from another machine: what `raystudy run --events` prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from raystudy.errors import JournalError
from raystudy.records import Event, event_from_json


def event_to_text(event: Event) -> str:
    """Return an event as one line of JSON. A decision's table is left out: it repeats what the events before it say."""
    data = event.to_json()
    if "table" in data:
        data["table"] = ()
    return json.dumps(data, separators=(",", ":"))


def event_from_text(line: str) -> Event | None:
    """Return the event of a line; None for a line of anything else, which a log has as well."""
    if not line.startswith("{"):
        return None
    try:
        return event_from_json(json.loads(line))
    except (ValueError, JournalError):
        return None


def whole_lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that arrives in pieces, without their ends; a last one without an end too."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from lines
    if rest:
        yield rest
