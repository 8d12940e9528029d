"""The command that asks how far a source of images is from a target."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raystudy.cli import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raystudy.finetune.transfer import Pair, Place, Taking


@click.command()
@click.argument("places", metavar="SOURCE TARGET... | STUDY.yaml", nargs=-1, required=True)
@click.option("--source", metavar="SOURCE", help="Measure from here to the images of a study file, under its backbones.")
@click.option("--backbone", "backbones", metavar="NAME", multiple=True, help="What takes the features; may be given again.")
@click.option(
    "--image-size",
    type=click.IntRange(8, 2048),
    help="Side of the images in pixels.  [default: the study's, else that at which the backbone was pretrained]",
)
@click.option(
    "--per-class", default=200, show_default=True, type=click.IntRange(min=1), help="The most images of a class that are used."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of splits, draws and classifiers.  [default: the study's, else 0]")
@click.option("--device", default="auto", show_default=True, help="Where features are computed: auto, cpu, cuda, cuda:N.")
@options.as_json
def distance(
    places: tuple[str, ...],
    source: str | None,
    backbones: tuple[str, ...],
    image_size: int | None,
    per_class: int,
    seed: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Show how far a source of images is from targets, by the features of a pretrained backbone.

    SOURCE and TARGET are written as in a study file's data.source: folder:PATH, sklearn:digits, idx:DIR, ...
    Their training images are measured, once: the answer is kept in the cache.
    """
    if source is None and len(places) < 2:
        hint = f"or give --source with the study file {places[0]}" if places[0].endswith((".yaml", ".yml")) else ""
        raise click.UsageError(f"expected SOURCE and at least one TARGET{', ' * bool(hint)}{hint}")
    if source is not None and len(places) > 1:
        raise click.UsageError("with --source, expected one study file")
    if source is None and not backbones:
        raise click.UsageError("--backbone is missing: which pretrained network is to take the features?")
    from raystudy import paths

    if source is None:
        start, targets, taking = _asked(places)
    else:
        start, targets, taking, backbones = _of_study(Path(places[0]), source, backbones)
    given: dict[str, Any] = {"image_size": image_size, "seed": seed}
    taking = replace(taking, per_class=per_class, device=device, **{name: n for name, n in given.items() if n is not None})
    from raystudy.finetune.transfer import measure

    with _busy() as say:
        pairs = measure(start, targets, list(dict.fromkeys(backbones)), taking, cache_dir=paths.cache(), say=say)
    if as_json:
        options.print_json(_document(pairs, taking))
    else:
        options.show(shown(pairs, taking))


def _asked(places: tuple[str, ...]) -> tuple[Place, list[Place], Taking]:
    from raystudy.finetune.transfer import Place, Taking

    first, *rest = (Place(place) for place in places)
    return first, list(dict.fromkeys(rest)), Taking()


def _of_study(file: Path, source: str, backbones: tuple[str, ...]) -> tuple[Place, list[Place], Taking, tuple[str, ...]]:
    from raystudy.preflight import read_study

    spec = read_study(file)
    from raystudy.finetune.transfer import Place, question_of

    target, taking, own = question_of(spec)
    return Place(source), [target], taking, backbones or tuple(own)


def _document(pairs: list[Pair], taking: Taking) -> dict[str, Any]:
    from raystudy.findings.transfer import MEASURES

    how = {"per_class": taking.per_class, "seed": taking.seed, "resolution": taking.resolution, "split": "train"}
    return {**how, "measures": [asdict(measure) for measure in MEASURES], "pairs": [pair.to_dict() for pair in pairs]}


def shown(pairs: list[Pair], taking: Taking) -> RenderableType:
    """Return what `raystudy distance` shows: a table for each backbone, and what the numbers mean in words."""
    from rich.console import Group
    from rich.text import Text

    by_backbone: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_backbone.setdefault(pair.backbone.name, []).append(pair)
    parts: list[RenderableType] = []
    for rows in by_backbone.values():
        parts += [*_table(rows), Text()]
    drawn = "1 image" if taking.per_class == 1 else f"{taking.per_class} images"
    parts.append(Text(f"training images, at most {drawn} of a class, seed {taking.seed}", style="dim"))
    return Group(*parts, *(Text(line) for line in _words()))


def _table(pairs: list[Pair]) -> Iterator[RenderableType]:
    from rich.text import Text

    from raystudy.cli.tables import new_table
    from raystudy.findings.transfer import MEASURES

    first = pairs[0]
    millions = f"{first.parameters / 1e6:.3g} million parameters"
    yield Text(f"from {first.source} under {first.backbone.name}", style="bold")
    yield Text(
        f"{first.distance.source_images} images, {first.distance.source_classes} classes, {first.image_size} px; "
        f"{millions}, weights: {first.backbone.weights}"
    )
    table = new_table("to", "images", "classes", *(measure.title for measure in MEASURES))
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for pair in pairs:
        values = asdict(pair.distance)
        numbers = [_number(values[measure.name]) for measure in MEASURES]
        table.add_row(pair.target, str(pair.distance.target_images), str(pair.distance.target_classes), *numbers)
    yield table


def _number(value: float) -> str:
    """Return `value` with three digits after the point, or as many as say something where it is large or very small."""
    if value and not 0.001 <= abs(value) < 1000:
        return f"{value:.2e}" if abs(value) < 0.001 or abs(value) >= 1e6 else f"{value:.0f}"
    return f"{value:.3f}"


def _words() -> Iterator[str]:
    """Say what each measure is and in which direction it means closer."""
    from raystudy.findings.transfer import MEASURES

    for direction in ("smaller", "larger"):
        yield f"closer where {direction}:"
        for measure in MEASURES:
            if measure.closer == direction:
                yield f"  {measure.title:<10}  {measure.what} ({measure.source})"
    yield "Compare numbers under one backbone only. LogME is the target's alone: it is the same from every source."
    yield "None of them is the truth; the number of parameters is the baseline that they must beat."


@contextmanager
def _busy() -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is going on; say nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("Starting") as status:
        yield lambda text: status.update(text[:1].upper() + text[1:])
