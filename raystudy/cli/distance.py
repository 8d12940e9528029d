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

    from raystudy.findings.transfer import LevelResults, Relation
    from raystudy.finetune.transfer import Pair, Place, Taking
    from raystudy.query import Study


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
@click.option("--results", "studies", metavar="NAME", multiple=True, help="Relate the distances to what this study found.")
@options.tracking
@options.as_json
def distance(
    places: tuple[str, ...],
    source: str | None,
    backbones: tuple[str, ...],
    image_size: int | None,
    per_class: int,
    seed: int | None,
    device: str,
    studies: tuple[str, ...],
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Show how far a source of images is from targets, by the features of a pretrained backbone.

    SOURCE and TARGET are written as in a study file's data.source: folder:PATH, sklearn:digits, idx:DIR, ...
    Their training images are measured, once: the answer is kept in the cache.

    --results, given once for each study, each of one of the TARGETs, asks whether targets that lie closer have better metrics,
    other learning rates or other frozen depths.
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
    names, recorded = list(dict.fromkeys(backbones)), _recorded(studies, targets, tracking_uri)
    from raystudy.finetune.transfer import check, measure
    from raystudy.tracking.address import tracking_uri as address
    from raystudy.tracking.sources import fetch

    check([start, *targets], names, taking)
    with _busy() as say:
        sources = fetch(names, address(tracking_uri), say=say)
        pairs = measure(start, targets, names, taking, cache_dir=paths.cache(), say=say, sources=sources)
        by_backbone = {name: pairs[k * len(targets) : (k + 1) * len(targets)] for k, name in enumerate(names)}
        found = _results(recorded, address(tracking_uri), say)
    related = {name: _related(name, block, recorded, found) for name, block in by_backbone.items()} if found else {}
    if as_json:
        options.print_json(_document(pairs, taking) | _relations_document(related, found))
    else:
        options.show(shown(pairs, taking))
        for name, relations in related.items():
            options.show(shown_relations(name, relations, found))


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
    titles = {measure.name: measure.title for measure in MEASURES}
    for name, why in first.absent.items():
        yield Text(f"no {titles[name]}: {why}")


def _number(value: float | None) -> str:
    """Return `value` with three digits after the point, or as many as say something where it is large or very small."""
    if value is None:
        return "-"
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


# What the distances have to do with results


def _recorded(names: tuple[str, ...], targets: list[Place], tracking_uri: str | None) -> list[Study]:
    """Open the studies; raise InputError for those that are not about one of the targets."""
    if not names:
        return []
    from raystudy.errors import InputError, Problem
    from raystudy.studies import open_study

    opened = [open_study(name, tracking_uri=tracking_uri) for name in dict.fromkeys(names)]
    known = [target.source for target in targets]
    problems = [
        Problem(f"--results {study.name}", f"its images are {images}", f"expected one of the targets: {', '.join(known)}")
        for study in opened
        if (images := study.spec.data.source) not in known
    ]
    if problems:
        raise InputError(problems)
    return opened


def _results(studies: list[Study], uri: str, say: Callable[[str], None]) -> dict[str, LevelResults]:
    """Return what each study found, by its name."""
    if not studies:
        return {}
    from raystudy.errors import InputError
    from raystudy.findings.transfer import results_of
    from raystudy.preflight import smallest_unit_count
    from raystudy.spec.depths import asks_for_units
    from raystudy.tracking.sources import fetch_sources

    found = {}
    for number, study in enumerate(studies):
        say(f"what {study.name} found")
        spec = study.spec
        knows_units = not asks_for_units(spec.all_factors)
        n_units = None if knows_units else smallest_unit_count(spec, fetch_sources(spec, uri, say=say))
        try:
            found[study.name] = results_of(spec, study.reports(), n_units=n_units, seed=number)
        except InputError as error:
            raise InputError(error.problems, title=f"--results {study.name}") from None
    return found


def _related(backbone: str, pairs: list[Pair], studies: list[Study], found: dict[str, LevelResults]) -> list[Relation]:
    """Relate the pairs of one backbone to what the studies found with it."""
    from raystudy.findings.transfer import COVARIATES, joined, relate

    by_target = {pair.target: pair for pair in pairs}
    having, results = [], []
    for study in studies:
        # A study of one backbone has one column of results, which is of no use for another backbone.
        level = None if found[study.name].source is None and study.spec.backbones == (backbone,) else backbone
        at = found[study.name].at(level)
        if at.levels:
            having.append(by_target[study.spec.data.source].to_dict())
            results.append(at)
    # Under one backbone the number of parameters is the same for all.
    return relate(having, joined(results), covariates=[name for name in COVARIATES if name != "parameters"])


def _relations_document(related: dict[str, list[Relation]], found: dict[str, LevelResults]) -> dict[str, Any]:
    from raystudy.findings.transfer import cautions

    if not found:
        return {}
    rows = [{"backbone": name, **one.to_dict()} for name, relations in related.items() for one in relations]
    every = [one for relations in related.values() for one in relations]
    missing = [f"{name}: {what}: {why}" for name, one in found.items() for what, why in one.left_out.items()]
    return {"relations": rows, "cautions": cautions(every), "left_out": missing}


def shown_relations(backbone: str, relations: list[Relation], found: dict[str, LevelResults]) -> RenderableType:
    """Return what the distances under one backbone have to do with the results: a table, and what is told in words."""
    from rich.console import Group
    from rich.text import Text

    from raystudy.cli.tables import new_table
    from raystudy.findings.transfer import cautions

    table = new_table("result", "distance", "pairs", "rank correlation", "90 %", "p")
    for one in relations:
        if one.rho is not None and one.p is not None:
            ends = f"{one.rho.low:.2f} to {one.rho.high:.2f}"
            table.add_row(one.result, one.covariate, str(one.n_pairs), f"{one.rho.value:.2f}", ends, f"{one.p:.2g}")
    told = [one.sentence for one in relations if one.is_told]
    if table.row_count and not told:
        told = ["No relation is told from none."]
    reasons = dict.fromkeys(one.reason for one in relations if one.reason)
    missing = (f"{name}: {what}: {why}" for name, one in found.items() for what, why in one.left_out.items())
    head = Text(f"what distance has to do with {', '.join(found)} under {backbone}", style="bold")
    none = [] if relations else ["No study has results with this backbone."]
    lines = [*told, *reasons, *none, *cautions(relations), *missing]
    return Group(Text(), head, *([table] if table.row_count else []), *(Text(line) for line in lines))
