"""Run the studies of docs/multifaceted.md, and write its tables and figures from what they recorded.

    python benchmarks/multifaceted.py                     everything: images, source models, studies, pages
    python benchmarks/multifaceted.py --only learning-rate frozen-depth
    python benchmarks/multifaceted.py --pages-only        from the studies that are recorded already

Studies are kept under --home (RAYSTUDY_HOME); one that is recorded there is not run again, one that was interrupted is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "multifaceted"
SPACES = ROOT / "search_spaces"


@dataclass(frozen=True)
class Step:
    """One recorded study.

    Attributes:
        name: the study.
        file: its file under search_spaces/.
        command: `run` or `pretrain`.
        tables: factors whose effects are tabulated.
        conditions: further questions, as `--given` takes them.
        cells: factors of a grid, of each combination of which the plain mean over its trials is tabulated.
    """

    name: str
    file: str
    command: str = "run"
    tables: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()


STEPS = (
    Step("near-source", "near_source.yaml", "pretrain"),
    Step("sources", "sources.yaml", "pretrain"),
    Step("learning-rate", "learning_rate.yaml", tables=("learning_rate", "optimizer")),
    Step(
        "frozen-depth",
        "frozen_depth.yaml",
        tables=("data_fraction", "frozen_depth"),
        conditions=("data_fraction=0.03", "data_fraction=1.0"),
    ),
    Step("source-categories", "source_categories.yaml", tables=("source_categories",)),
    Step("source-images", "source_images.yaml", tables=("source_images_per_category",)),
    Step("source-distance", "source_distance.yaml", tables=("backbone", "learning_rate", "frozen_depth")),
    Step("closer-source", "closer_source.yaml", cells=("backbone", "learning_rate")),
    Step("imbalance", "imbalance.yaml", tables=("images_per_class", "class_imbalance", "label_noise")),
    Step("paper-factors", "paper_factors.yaml", tables=("learning_rate", "frozen_depth", "data_fraction")),
)
EXTRACTOR = "efficientnet_lite0"
"""What the distances are measured under: they are comparable under one network only."""
RELATED = "source-distance"
"""The study whose sources' distances are related to its results."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path.home() / ".local" / "share" / "raystudy-multifaceted")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], default=[step.name for step in STEPS])
    parser.add_argument("--pages-only", action="store_true", help="run nothing")
    asked = parser.parse_args()
    os.environ["RAYSTUDY_HOME"] = str(asked.home)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.chdir(ROOT)  # the study files name data/
    chosen = [step for step in STEPS if step.name in asked.only]
    if not asked.pages_only:
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "source_images.py")], check=True)
        for step in chosen:
            carry_out(step)
    for step in chosen:
        if step.command == "run" and state(step.name) == "completed":
            write_page(step)
    return 0


def carry_out(step: Step) -> None:
    """Run or resume a study unless it is complete."""
    known = state(step.name)
    if known == "completed":
        print(f"{step.name}: recorded", flush=True)
        return
    began = time.monotonic()
    command = ["resume", step.name] if known else [step.command, str(SPACES / step.file)]
    subprocess.run([*RAYSTUDY, *command], check=True)
    print(f"{step.name}: {time.monotonic() - began:.0f} s", flush=True)


RAYSTUDY = (sys.executable, "-m", "raystudy")


def state(name: str) -> str:
    """Return the state of a recorded study, empty where there is none."""
    found = subprocess.run([*RAYSTUDY, "status", name, "--json"], capture_output=True, text=True, check=False)
    return str(json.loads(found.stdout)["state"]) if found.returncode == 0 else ""


def write_page(step: Step) -> None:
    """Write a study's tables and figure."""
    import raystudy as rs

    PAGES.mkdir(parents=True, exist_ok=True)
    study = rs.open_study(step.name)
    answer = study.importance()
    answer.figure().savefig(PAGES / f"{step.name}.png", dpi=80)
    blocks = [*heading(study, step), *shares(answer), *effects(answer, step.tables), "```", str(answer), "```", ""]
    for condition in step.conditions:
        name, _, value = condition.partition("=")
        given = study.importance(given={name: json.loads(value)})
        blocks += [f"With {condition}:", "", *shares(given), *effects(given, ("frozen_depth",))]
    blocks += cells(study, step.cells)
    if step.name == RELATED:
        blocks += relation(study)
    (PAGES / f"{step.name}.md").write_text("\n".join(blocks), encoding="utf-8")
    print(f"wrote {PAGES / step.name}.md", flush=True)


def heading(study: Any, step: Step) -> Iterator[str]:
    status = study.status()
    counts = ", ".join(f"{count} {name}" for name, count in status.trials.items())
    yield f"# {step.name}"
    yield ""
    yield f"`raystudy run search_spaces/{step.file}`: {counts}; {status.epochs_trained} epochs. Best: "
    best = study.best(k=1)[0]
    config = ", ".join(f"{name}={_short(value)}" for name, value in best.config.items())
    yield f"{status.metric} {best.metrics[status.metric]:.4f} with {config}."
    yield ""
    yield f"![importance of {step.name}]({step.name}.png)"
    yield ""


def shares(answer: Any) -> Iterator[str]:
    """Yield the table of shares."""
    yield "| factor | first-order share | total share | verdict |"
    yield "|---|---|---|---|"
    for row in answer.table().to_pylist():
        first = _interval(row["first_order"], row["first_order_low"], row["first_order_high"])
        total = _interval(row["total"], row["total_low"], row["total_high"])
        yield f"| {row['factor']} | {first} | {total} | {row['verdict']} |"
    yield ""


def effects(answer: Any, names: Sequence[str]) -> Iterator[str]:
    """Yield a table of levels for each factor that is asked for."""
    for effect in (effect for effect in answer.effects if effect.factor in names):
        yield f"| {effect.factor} | {answer.metric}, mean | others tuned | probability of being best |"
        yield "|---|---|---|---|"
        for level in effect.levels:
            mean, profile = (_interval(one.value, one.low, one.high) for one in (level.mean, level.profile))
            yield f"| {_short(level.value)} | {mean} | {profile} | {level.probability_best:.2f} |"
        yield ""


def cells(study: Any, names: Sequence[str]) -> Iterator[str]:
    """Yield the mean of the metric at each combination of some factors, with its 90 % interval by Student's t."""
    if not names:
        return
    found: dict[tuple[object, ...], list[float]] = {}
    for trial in study.trials().to_pylist():
        found.setdefault(tuple(trial[name] for name in names), []).append(trial[study.metric])
    yield f"| {' | '.join(names)} | trials | {study.metric}, mean |"
    yield "|---" * (len(names) + 2) + "|"
    for cell, values in sorted(found.items(), key=lambda item: str(item[0])):
        half = float(stats.t.ppf(0.95, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
        mean = float(np.mean(values))
        yield f"| {' | '.join(map(_short, cell))} | {len(values)} | {_interval(mean, mean - half, mean + half)} |"
    yield ""


def relation(study: Any) -> Iterator[str]:
    """Yield the distances of a study's registered sources from its target, and what they have to do with its results."""
    from raystudy.findings.transfer import distance, relate
    from raystudy.findings.transfer.levels import results_of

    found = results_of(study.spec, study.reports(), n_units=18)
    sources = [str(level) for level in found.levels if str(level).startswith("models:/")]
    (target,) = samples([study.spec], ["target"], {})
    pairs = [asdict(distance(sample, target)) for sample in samples(*origins(sources))]
    shown = ("emd_similarity", "a_distance", "squared_mmd", "frechet", "leep")
    yield f"| source | {' | '.join(shown)} |"
    yield "|---" * (len(shown) + 1) + "|"
    for level, pair in zip(sources, pairs, strict=True):
        yield f"| {level} | " + " | ".join(f"{pair[name]:.3f}" for name in shown) + " |"
    yield ""
    columns = [found.levels.index(level) for level in sources]
    for one in relate(pairs, {name: draws[:, columns] for name, draws in found.draws.items()}, covariates=shown):
        yield f"- {one.sentence}"
    yield ""


def origins(addresses: Sequence[str]) -> tuple[list[Any], list[str], dict[str, Any]]:
    """Return the studies that source models come from, their addresses, and each one's configuration."""
    import raystudy as rs
    from raystudy.spec.sources import alias_of

    specs: list[Any] = []
    configs: dict[str, Any] = {}
    for address in addresses:
        name, _, alias = address.removeprefix("models:/").partition("@")
        study = rs.open_study(name)
        specs.append(study.spec)
        configs[address] = next(one.config for one in study.best(k=1000) if alias_of(one.config) == alias)
    return specs, list(addresses), configs


def samples(specs: Sequence[Any], names: Sequence[str], configs: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Return the features of what each was trained on, under one network."""
    from raystudy import paths
    from raystudy.data import Selection, open_data, select
    from raystudy.finetune.backbone import build_backbone
    from raystudy.finetune.compute import Compute
    from raystudy.finetune.embed import embed

    found, compute = [], Compute.choose("cpu", "float32")
    for spec, name in zip(specs, names, strict=True):
        data, config = open_data(spec, paths.cache()), spec.full_config(configs.get(name, {}))
        wanted = Selection(images_per_class=int(config["images_per_class"]), categories=int(config["categories"]))
        chosen = select(wanted, data.splits, data.labels, n_classes=len(data.class_names), seed=spec.search.seed)
        backbone = build_backbone(EXTRACTOR, image_size=spec.data.image_size)
        found.append(embed(data, chosen.train, backbone, name=name, compute=compute))
    return found


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
