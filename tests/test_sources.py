"""Source models: how they are made, named, fetched and pinned, and what a study makes of them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from journals import study_events
from safetensors.torch import save
from stores import Server, empty_store
from toys import ToyTrainer, toy_spec

from raystudy import driver, paths, preflight, preparation
from raystudy.cli import main
from raystudy.driver import Setting
from raystudy.errors import BackboneError, RaystudyError, SpecError, UnreachableError
from raystudy.finetune.architectures import find_architecture
from raystudy.finetune.backbone import build_backbone, builder_with, save_backbone
from raystudy.finetune.names import parse_backbone
from raystudy.finetune.source_models import SourceModel, Sources, file_digest
from raystudy.finetune.trainer import FineTuneTrainer, check_weights
from raystudy.paths import StudyPaths
from raystudy.progress import event_line
from raystudy.records import Event, StudyRecord
from raystudy.space import Space
from raystudy.spec import StudySpec
from raystudy.spec.sources import alias, alias_of
from raystudy.tracking.feeder import Ready
from raystudy.tracking.journal import read_journal
from raystudy.tracking.models import read_model
from raystudy.tracking.provenance import training_of
from raystudy.tracking.registry import Registry
from raystudy.tracking.sources import fetch_sources
from raystudy.tracking.store import Store
from raystudy.work import Ticket

PRETRAINING = {
    "name": "shapes",
    "data": {"source": "sklearn:digits", "image_size": 32},
    "backbone": "efficientnet_lite0",
    "categories": [2, 4],
    "images_per_category": [5, 0],
    "epochs": 3,
    "fixed": {"learning_rate": 1e-3},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYSTUDY_CACHE", str(tmp_path / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def problems_of(action: Callable[[], Any]) -> list[str]:
    with pytest.raises((SpecError, BackboneError)) as caught:
        action()
    return [str(problem) for problem in caught.value.problems]


# Files of source models


def test_a_file_of_source_models_is_a_study_of_one_trial_a_model() -> None:
    spec = preflight.check_pretraining(PRETRAINING)
    assert {name: factor.choice for name, factor in spec.factors.items()} == {"categories": (2, 4), "images_per_class": (5, 0)}
    assert spec.fixed == {"learning_rate": 1e-3, "pretrained": False, "seed": 0}
    assert (spec.budget.trials, spec.budget.epochs, spec.keep_models, spec.registers) == (4, 3, 4, "all")
    assert (spec.search.sampler, spec.early_stopping.scheduler) == ("grid", "none")
    assert StudySpec.from_dict(spec.to_dict()) == spec
    grid = list(preflight.space_of(spec).grid())
    assert [alias_of(config) for config in grid] == ["c2-i5", "c2", "c4-i5", "c4"]


def test_what_the_file_may_say_besides_comes_through() -> None:
    more = {"pretrained": True, "seeds": [3, 5], "unit": "subset_epoch", "subset_seed": 7, "resources": {"cpu": 2}}
    spec = preflight.check_pretraining({**PRETRAINING, **more})
    assert (spec.fixed["pretrained"], spec.budget.unit, spec.search.seed, spec.resources.cpu) == (True, "subset_epoch", 7, 2)
    assert spec.factors["seed"].choice == (3, 5)
    assert [alias_of(config) for config in preflight.space_of(spec).grid()][:2] == ["c2-i5-s3", "c2-i5-s5"]


@pytest.mark.parametrize(
    ("objective", "factor", "fixed", "aliases"),
    [
        ("supervised", None, None, ["c2", "c4"]),
        ("self_supervised", None, "self_supervised", ["c2", "c4"]),
        (["self_supervised"], None, "self_supervised", ["c2", "c4"]),
        (["supervised", "self_supervised"], ("supervised", "self_supervised"), None, ["c2", "c2-self", "c4", "c4-self"]),
    ],
)
def test_source_models_may_be_trained_without_labels(
    objective: Any, factor: tuple[str, ...] | None, fixed: str | None, aliases: list[str]
) -> None:
    plain = {**PRETRAINING, "images_per_category": [0]}
    spec = preflight.check_pretraining({**plain, "objective": objective})
    assert (factor and spec.factors["training_objective"].choice) == factor
    assert spec.fixed.get("training_objective") == fixed
    assert [alias_of(config) for config in preflight.space_of(spec).grid()] == aliases
    assert spec.budget.trials == len(aliases)
    assert (spec.fingerprint == preflight.check_pretraining(plain).fingerprint) == (objective == "supervised")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective": "contrastive"}, "objective[0]: "),
        ({"objective": ["supervised", "supervised"]}, "objective[1]: supervised is given twice"),
        ({"objective": []}, "objective: is an empty list, expected one or more names"),
        ({"fixed": {"training_objective": "supervised"}}, "fixed.training_objective: has a key of its own; write objective at"),
        ({"objective": "self_supervised", "fixed": {"batch_size": 1}}, "fixed.batch_size: got 1, but training_objective"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems_of(lambda: preflight.check_pretraining({**PRETRAINING, **changes}))
    assert problem.startswith(expected)


def test_read_study_knows_such_a_file_by_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "shapes.yaml"
    file.write_text(json.dumps(PRETRAINING))
    spec = preflight.read_study(file, ["categories=[3]"], name="others")
    assert (spec.name, spec.budget.trials) == ("others", 2)


def test_everything_wrong_with_the_file_is_in_one_message_at_its_own_places() -> None:
    wrong = {
        "categories": [1, "x", 4],
        "images_per_category": [5, 5],
        "seeds": [],
        "epochs": "3",
        "epoch": 1,
        "data": {"source": "sklearn:digits", "image_size": 4},
        "backbone": "resnet180",
        "fixed": {"seed": 1, "lr": 0.1},
    }
    problems = problems_of(lambda: preflight.check_pretraining({**PRETRAINING, **wrong}))
    places = [problem.partition(": ")[0] for problem in problems]
    assert sorted(places) == sorted(
        [
            "epoch",
            "data.image_size",
            "categories[0]",
            "categories[1]",
            "images_per_category[1]",
            "seeds",
            "epochs",
            "fixed.seed",
            "fixed.lr",
            "backbone",
        ]
    )
    assert "fixed.seed: has a key of its own; write seeds at the top level" in problems


@pytest.mark.parametrize("missing", ["name", "data", "backbone", "categories", "epochs"])
def test_what_is_missing_is_named_once(missing: str) -> None:
    data = {name: value for name, value in PRETRAINING.items() if name != missing}
    (problem,) = problems_of(lambda: preflight.check_pretraining(data))
    assert problem.startswith(f"{missing}: is missing; expected ")


@pytest.mark.parametrize("data", [None, [], "shapes", {}])
def test_what_is_no_mapping_is_refused(data: Any) -> None:
    (problem,) = problems_of(lambda: preflight.check_pretraining(data))
    assert "expected name, data, backbone" in problem


def test_more_categories_than_classes_are_refused_before_anything_starts() -> None:
    spec = preflight.check_pretraining({**PRETRAINING, "categories": [2, 11, 40]})
    assert problems_of(lambda: preflight.check_classes(spec, 10)) == [
        "factors.categories.choice[1]: got 11, but sklearn:digits has 10 classes; expected at most 10",
        "factors.categories.choice[2]: got 40, but sklearn:digits has 10 classes; expected at most 10",
    ]
    preflight.check_classes(spec, 40)


# Aliases and factors


@pytest.mark.parametrize(
    ("parts", "expected"),
    [((4,), "c4"), ((4, 0), "c4"), ((4, 200), "c4-i200"), ((4, 200, 0), "c4-i200-s0"), ((10, 0, 1), "c10-s1")],
)
def test_an_alias_has_the_categories_and_what_else_varies(parts: tuple[int, ...], expected: str) -> None:
    assert alias(*parts) == expected
    assert alias(*parts, objective="self_supervised") == f"{expected}-self"


def from_sources(**changes: Any) -> dict[str, Any]:
    study = {
        "name": "target",
        "data": {"source": "sklearn:digits", "image_size": 32},
        "factors": {"source_categories": {"choice": [2, 4]}, "learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "fixed": {"source": "shapes"},
    }
    return study | changes


def test_source_factors_name_registered_models() -> None:
    spec = preflight.check(from_sources())
    assert spec.backbones == ("models:/shapes@c2", "models:/shapes@c4")
    assert spec.cells == ("source_categories",)
    assert spec.full_config({"source_categories": 4})["backbone"] == "models:/shapes@c4"
    assert "backbone" not in spec.to_dict()
    assert StudySpec.from_dict(spec.to_dict()) == spec


def test_every_combination_that_a_study_can_ask_for_is_known_beforehand() -> None:
    factors = {
        "source": {"choice": ["shapes", "letters"]},
        "source_categories": {"int": [2, 6], "step": 2},
        "source_images_per_category": {"choice": [5, 0]},
    }
    spec = preflight.check(from_sources(factors=factors, fixed={"source_seed": 1}))
    assert len(spec.backbones) == 2 * 3 * 2
    assert {"models:/shapes@c2-i5-s1", "models:/letters@c6-s1"} <= set(spec.backbones)
    factors["source_objective"] = {"choice": ["supervised", "self_supervised"]}
    spec = preflight.check(from_sources(factors=factors, fixed={"source_seed": 1}))
    assert len(spec.backbones) == 2 * 3 * 2 * 2
    assert {"models:/shapes@c2-i5-s1", "models:/letters@c6-s1-self"} <= set(spec.backbones)
    assert "source_objective" in spec.cells
    for config in Space.of(spec).grid():
        assert spec.full_config(config)["backbone"] in spec.backbones


def test_without_pretrained_weights_source_factors_have_no_effect() -> None:
    when = {"when": {"pretrained": True}}
    factors = {"pretrained": {"choice": [True, False]}, "source_categories": {"choice": [2, 4], **when}}
    spec = preflight.check(from_sources(factors=factors))
    assert [dict(config) for config in Space.of(spec).grid()] == [
        {"pretrained": True, "source_categories": 2},
        {"pretrained": True, "source_categories": 4},
        {"pretrained": False},
    ]
    assert spec.full_config({"pretrained": False})["backbone"] == "models:/shapes@c2"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backbone": "resnet18"}, "backbone: is given, and so is fixed.source"),
        ({"fixed": {}}, "factors.source_categories: says nothing without `source`"),
        ({"factors": {"seed": {"int": [0, 3]}}}, "fixed.source: does not say which of its models"),
        (
            {
                "factors": {"source_categories": {"choice": [2, 4], "when": {"optimizer": "sgd"}}},
                "fixed": {"source": "a", "optimizer": "sgd"},
            },
            "factors.source_categories.when.optimizer: a factor about the source depends on no other factor",
        ),
        ({"factors": {"source_categories": {"choice": [0, 2]}}}, "factors.source_categories: got 0"),
        ({"factors": {"source_categories": {"int": [2, 900]}}}, "fixed.source: together the source factors ask for 899"),
        ({"fixed": {"source": "a/b"}}, "fixed.source: got 'a/b'"),
        (
            {"factors": {"source_categories": {"uniform": [2, 4]}}},
            "factors.source_categories.uniform: source_categories takes whole",
        ),
        ({"factors": {"source_categories": 4}}, "factors.source_categories: got 4"),
        ({"fixed": {"source": "a", "source_objective": "self"}}, "fixed.source_objective: got 'self', expected one of"),
        ({"fixed": {"source": 5}}, "fixed.source: got 5, expected a name"),
    ],
)
def test_source_factors_that_name_nothing_are_refused(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems_of(lambda: preflight.check(from_sources(**changes)))
    assert problem.startswith(expected)


def test_a_study_that_names_neither_backbone_nor_source_misses_one() -> None:
    data = {name: value for name, value in from_sources().items() if name != "fixed"}
    data["factors"] = {"seed": {"int": [0, 3]}}
    (problem,) = problems_of(lambda: preflight.check(data))
    assert problem.startswith("backbone: is missing; expected ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"factors": {"seed": {"int": [0, 3]}}, "fixed": {}}, "register: got all, but `categories` does not vary"),
        ({"factors": {"categories": {"choice": [2]}, "l2_sp": {"choice": [0.0, 0.1]}}}, "register: got all, but l2_sp varies"),
        ({"early_stopping": {"scheduler": "asha"}}, "register: got all, but early stopping"),
    ],
)
def test_models_whose_aliases_would_not_tell_them_apart_are_not_all_registered(changes: dict[str, Any], expected: str) -> None:
    data = preflight.check_pretraining(PRETRAINING).to_dict() | changes
    (problem,) = problems_of(lambda: preflight.check(data))
    assert problem.startswith(expected)


def test_what_is_registered_does_not_change_what_a_study_is() -> None:
    spec = preflight.check_pretraining(PRETRAINING)
    assert spec.model_copy(update={"registers": "best"}).fingerprint == spec.fingerprint


def test_provenance_names_the_classes_that_were_drawn_nested() -> None:
    spec, classes = preflight.check_pretraining(PRETRAINING), list("abcdefghij")
    few, more = (training_of(spec, {"categories": number, "images_per_class": 5}, classes) for number in (2, 4))
    assert len(few["classes_used"]) == 2
    assert set(few["classes_used"]) < set(more["classes_used"])
    assert (few["images_per_category"], few["data"], few["image_size"]) == (5, "sklearn:digits", 32)
    assert training_of(spec, {"categories": 2, "images_per_class": 0}, classes)["images_per_category"] is None
    assert few["objective"] == "supervised"
    without = training_of(spec, {"categories": 2, "training_objective": "self_supervised"}, classes)
    assert without["objective"] == "self_supervised"


# Fetching


class Shelf:
    """A registry in a SQLite store, of models that hold hardly anything."""

    def __init__(self, home: Path, uri: str = "") -> None:
        self.uri = uri or empty_store(home)
        self.store = Store(self.uri)
        self.registry = Registry(self.store)
        self._experiment = self.store.experiment_or_new("shapes")
        self._count = 0

    def add(
        self,
        alias: str,
        *,
        name: str = "shapes",
        card: str = "resnet18",
        weights: str = "resnet18",
        extra: bool = True,
        objective: str = "",
    ) -> str:
        """Register a model of new weights under an alias; return the run's id."""
        self._count += 1
        tensors = {"backbone.units.0.w": torch.full((3,), float(self._count)), "head.weight": torch.zeros(2, 3)}
        run_id = str(self.store.client.create_run(self._experiment).info.run_id)

        def write(target: Path, _: Any) -> None:
            files = target / "extra_files"
            files.mkdir(parents=True)
            (target / "MLmodel").write_text("flavors: {}")
            if extra:
                (files / "model.safetensors").write_bytes(save(tensors, metadata={"raystudy.backbone": weights}))
                provenance = {"provenance": {"objective": objective}} if objective else {}
                (files / "model.json").write_text(json.dumps(a_card(card) | provenance))

        model_id = self.store.log_model(self._experiment, run_id, 1, write)
        self.registry.register(name, model_id, run_id, alias)
        return run_id


def a_card(architecture: str) -> dict[str, Any]:
    return {
        "format": 1,
        "backbone": {"architecture": architecture},
        "class_names": ["a", "b"],
        "image_size": 32,
        "inside_model": {"resize_to": None, "mean": [0.5] * 3, "std": [0.5] * 3},
    }


@pytest.fixture
def shelf(home: Path) -> Shelf:
    return Shelf(home)


def naming(*backbones: str) -> StudySpec:
    return toy_spec(backbone=list(backbones) if len(backbones) > 1 else backbones[0])


def test_a_registered_model_is_fetched_once_and_known_by_its_content(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = shelf.add("c2")
    spec = naming("models:/shapes@c2", "models:/shapes/1", "resnet18")
    sources = fetch_sources(spec, shelf.uri)
    source = sources["models:/shapes@c2"]
    assert list(sources) == ["models:/shapes@c2", "models:/shapes/1"]
    assert (source.name, source.version, source.run_id, source.architecture) == ("shapes", "1", run_id, "resnet18")
    assert source.file == paths.sources() / f"{source.digest}.safetensors"
    assert file_digest(source.file) == source.digest
    assert sources["models:/shapes/1"].digest == source.digest
    monkeypatch.setattr(Registry, "download", None)
    assert fetch_sources(spec, shelf.uri) == sources
    assert not list(paths.sources().glob(".*")), "nothing half-written is left"


def test_what_a_model_was_trained_for_is_read_from_its_card_and_kept(shelf: Shelf) -> None:
    shelf.add("old")
    shelf.add("c2", objective="supervised")
    shelf.add("c2-self", objective="self_supervised")
    spec = naming("models:/shapes@old", "models:/shapes@c2", "models:/shapes@c2-self")
    first, again = fetch_sources(spec, shelf.uri), fetch_sources(spec, shelf.uri)
    assert [source.has_head for source in first.values()] == [True, True, False]
    assert first == again, "from the folder as from the registry"
    noted = {address: source.note() for address, source in first.items()}
    assert fetch_sources(spec, shelf.uri, noted) == first
    before = {"models:/shapes@old": {key: value for key, value in noted["models:/shapes@old"].items() if key != "objective"}}
    assert fetch_sources(naming("models:/shapes@old"), shelf.uri, before)["models:/shapes@old"].has_head


def test_a_file_with_other_content_is_fetched_again_and_never_trained_on(shelf: Shelf) -> None:
    shelf.add("c2")
    (source,) = fetch_sources(naming("models:/shapes@c2"), shelf.uri).values()
    whole = source.file.read_bytes()
    source.file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(BackboneError, match="holds something else than the weights of models:/shapes@c2"):
        builder_with({source.address: source})(source.address, pretrained=True, seed=0, image_size=32)
    assert fetch_sources(naming("models:/shapes@c2"), shelf.uri) == {source.address: source}
    assert source.file.read_bytes() == whole


def test_models_that_do_not_exist_are_all_named_with_those_that_do(shelf: Shelf) -> None:
    for name in ("c2", "c4", "c10"):
        shelf.add(name)
    spec = naming("models:/shapes@c3", "models:/shapes/9", "models:/shape@c2", "models:/shapes@c2")
    assert problems_of(lambda: fetch_sources(spec, shelf.uri)) == [
        "backbone: models:/shapes@c3: shapes has no alias 'c3'; its aliases are c2, c4, c10",
        "backbone: models:/shapes/9: shapes has no version 9; its aliases are c2, c4, c10",
        "backbone: models:/shape@c2: there is no registered model 'shape'; did you mean shapes? there are shapes",
    ]
    factors = preflight.check(from_sources(factors={"source_categories": {"choice": [2, 3]}}))
    (problem,) = problems_of(lambda: fetch_sources(factors, shelf.uri))
    assert problem.startswith("source: models:/shapes@c3: shapes has no alias 'c3'")


def test_an_empty_registry_says_how_to_fill_it(shelf: Shelf) -> None:
    (problem,) = problems_of(lambda: fetch_sources(naming("models:/shapes@c2"), shelf.uri))
    assert problem.endswith("there are none yet: `raystudy pretrain` makes source models")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "sqlite:////nowhere/mlflow.db"])
def test_a_store_that_does_not_answer_is_said_at_once(address: str) -> None:
    with pytest.raises(UnreachableError):
        fetch_sources(naming("models:/shapes@c2"), address)


def test_models_that_something_else_registered_are_refused_with_a_reason(shelf: Shelf) -> None:
    shelf.add("bare", extra=False)
    shelf.add("torn", weights="resnet50")
    shelf.add("odd", card="models:/other@best", weights="models:/other@best")
    client = shelf.store.client
    version = client.create_model_version("shapes", (shelf.store.uri + ".d").replace("sqlite://", "file:"))
    client.set_registered_model_alias("shapes", "foreign", version.version)
    spec = naming(*(f"models:/shapes@{name}" for name in ("bare", "torn", "odd", "foreign")))
    bare, torn, odd, foreign = problems_of(lambda: fetch_sources(spec, shelf.uri))
    assert "models:/shapes@bare (version 1) was not made by raystudy: it has no model.json and no model.safetensors" in bare
    assert "models:/shapes@torn is damaged: its card says resnet18, its weights say resnet50" in torn
    assert "says that its architecture is 'models:/other@best'" in odd
    assert "models:/shapes@foreign (version 4) was not made by raystudy: its version names no logged model" in foreign
    assert not paths.sources().exists() or not list(paths.sources().glob("*.json")), "nothing of them is kept"


# Pinned for a resume


def test_a_resume_has_the_version_that_the_alias_meant_when_the_study_began(shelf: Shelf) -> None:
    shelf.add("best")
    spec = naming("models:/shapes@best")
    began = fetch_sources(spec, shelf.uri)
    noted = {address: source.note() for address, source in began.items()}
    shelf.add("best")
    assert fetch_sources(spec, shelf.uri)["models:/shapes@best"].version == "2"
    assert fetch_sources(spec, shelf.uri, noted) == began
    assert fetch_sources(spec, "http://127.0.0.1:9", noted) == began, "nobody need be asked for what is there"
    shutil.rmtree(paths.sources())
    assert fetch_sources(spec, shelf.uri, noted) == began, "by its version, when its file is gone"


def test_a_version_that_cannot_be_had_any_more_is_refused(shelf: Shelf) -> None:
    shelf.add("best")
    spec = naming("models:/shapes@best")
    noted = {address: source.note() for address, source in fetch_sources(spec, shelf.uri).items()}
    shutil.rmtree(paths.sources())
    shelf.add("best")
    shelf.store.client.delete_model_version("shapes", "1")
    (problem,) = problems_of(lambda: fetch_sources(spec, shelf.uri, noted))
    assert "models:/shapes@best was version 1 of shapes when the study began, which is gone" in problem
    assert "begin another study" in problem


def test_a_version_with_other_content_than_it_had_is_refused(shelf: Shelf) -> None:
    shelf.add("best")
    spec = naming("models:/shapes@best")
    (note,) = [source.note() for source in fetch_sources(spec, shelf.uri).values()]
    noted = {"models:/shapes@best": {**note, "digest": "0" * 64}}
    (problem,) = problems_of(lambda: fetch_sources(spec, shelf.uri, noted))
    assert "was 000000000000 (SHA-256) when the study began" in problem


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put something that records nothing in the place of the MLflow writer."""

    class Quiet:
        @classmethod
        def prepare(cls, *_: Any) -> Quiet:
            return cls()

        def begin(self) -> None: ...

        def abandon(self) -> None: ...

        def wait_ready(self, _: float) -> Ready:
            return Ready("1", "r", "sqlite:///x.db")

        def finish(self, _: float) -> bool:
            return True

        def notify(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(preparation, "Feeder", Quiet)


@pytest.mark.usefixtures("quiet")
def test_the_journal_notes_what_a_study_began_with_and_a_resume_keeps_it(shelf: Shelf) -> None:
    shelf.add("best")
    factors = {"learning_rate": {"log_uniform": [1e-4, 1e-1]}, "frozen_depth": {"choice": [0, "max"]}}
    spec = toy_spec(backbone="models:/shapes@best", factors=factors, tracking_uri=shelf.uri)
    setting = Setting(inline=True, trainer=ToyTrainer(4, folder=StudyPaths.of("toy").all_checkpoints, mishaps={2: "interrupt"}))
    driver.run(spec, setting)
    journal = StudyPaths.of("toy").journal
    record = StudyRecord.fold(read_journal(journal))
    began = record.data["sources"]["models:/shapes@best"]
    assert (began["name"], began["version"], record.data["units"]) == ("shapes", "1", 9)
    shelf.add("best")
    seen: list[Sources] = []
    real = fetch_sources

    def watched(*arguments: Any, **options: Any) -> Sources:
        seen.append(real(*arguments, **options))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raystudy.driver.fetch_sources", watched)
        driver.resume("toy", None, setting)
    assert [source.version for source in seen[-1].values()] == ["1"]
    after = StudyRecord.fold(read_journal(journal))
    assert after.state == "completed"
    assert {config.config["frozen_depth"] for config in after.trials.values()} == {0, 9}, "max is resnet18's number of units"


@pytest.mark.usefixtures("quiet")
def test_nothing_is_started_where_a_model_is_missing_or_has_too_few_units(shelf: Shelf) -> None:
    setting = Setting(inline=True, trainer=ToyTrainer(4))
    missing = toy_spec(backbone="models:/shapes@c9", tracking_uri=shelf.uri)
    with pytest.raises(BackboneError, match="there is no registered model 'shapes'"):
        driver.run(missing, setting)
    shelf.add("best")
    factors = {"frozen_depth": {"choice": [0, 12]}}
    deep = preflight.check(toy_spec(backbone="models:/shapes@best", factors=factors, tracking_uri=shelf.uri).to_dict())
    with pytest.raises(SpecError, match=r"got 12, but models:/shapes@best has 9 units; expected at most 9"):
        driver.run(deep, setting)
    assert not StudyPaths.of("toy").journal.exists()


# Training


def source_file(folder: Path, seed: int) -> SourceModel:
    """Return a source model of efficientnet_lite0 with random weights."""
    draft = folder / f"{seed}.safetensors"
    save_backbone(build_backbone("efficientnet_lite0", pretrained=False, seed=seed), draft)
    digest = file_digest(draft)
    return SourceModel(
        f"models:/shapes@s{seed}", "shapes", str(seed), f"r{seed}", f"m-{seed}", "efficientnet_lite0", digest, draft
    )


@pytest.mark.slow
def test_trials_that_differ_in_their_source_begin_with_its_weights_and_share_nothing(tmp_path: Path) -> None:
    sources = {source.address: source for source in (source_file(tmp_path, 1), source_file(tmp_path, 2))}
    spec = toy_spec(backbone=list(sources), factors={"learning_rate": {"choice": [1e-3]}}, features="off")
    infos = check_weights(spec, sources)
    trainer = FineTuneTrainer(spec, tmp_path / "checkpoints", tmp_path / "cache", sources=sources)
    assert pickle.loads(pickle.dumps(trainer)).sources == sources, "it travels to the workers"
    states = []
    for number, address in enumerate(sources):
        assert (infos[address].name, infos[address].architecture) == (address, "efficientnet_lite0")
        assert infos[address].weights.startswith(f"{address} (version {number + 1} of shapes, sha256 ")
        config = spec.full_config({"backbone": address, "learning_rate": 1e-3})
        training: Any = trainer.open(Ticket(f"t{number}", 0, config))
        build = training._run._backbone
        network = build(address, pretrained=True, seed=0, image_size=32)
        wanted = build_backbone("efficientnet_lite0", pretrained=False, seed=number + 1).state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())
        states.append(network.state_dict())
        for parameter in network.parameters():
            parameter.data.zero_()
        again = build(address, pretrained=True, seed=0, image_size=32).state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in again.items()), "a trial trains a copy"
        training.close()
    one, other = states
    assert one.keys() == other.keys()
    assert not {value.data_ptr() for value in one.values() if value.numel()} & {value.data_ptr() for value in other.values()}


def test_random_weights_are_those_of_the_same_architecture(tmp_path: Path) -> None:
    source = source_file(tmp_path, 1)
    source.file.unlink()
    network = builder_with({source.address: source})(source.address, pretrained=False, seed=5, image_size=32)
    wanted = build_backbone("efficientnet_lite0", pretrained=False, seed=5).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())
    assert (network.info.name, network.info.weights) == (source.address, "none")


def test_weights_that_no_trial_begins_with_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystudy.finetune.trainer._shared_backbone", None)
    (info,) = check_weights(preflight.check_pretraining(PRETRAINING)).values()
    assert (info.weights, info.n_units) == ("none", 18)


def test_a_registered_model_that_nobody_fetched_is_refused_in_words() -> None:
    with pytest.raises(BackboneError, match="has not been fetched"):
        find_architecture(parse_backbone("models:/shapes@c2"))
    with pytest.raises(RaystudyError, match="has not been fetched"):
        preflight.space_of(naming("models:/shapes@c2"))


# End to end


def test_a_cluster_gets_the_study_that_the_file_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[StudySpec] = []

    class Cluster:
        def __init__(self, address: str) -> None:
            self.address = address

        def submit(self, spec: StudySpec, *, resume: bool) -> Any:
            assert not resume
            taken.append(spec)
            return SimpleNamespace(job=SimpleNamespace(job_id="raystudy-shapes"), state="queued")

        def events(self, name: str) -> Iterator[Event]:
            assert name == "shapes"
            return iter(study_events(1))

    monkeypatch.setattr("raystudy.cluster.service.Cluster", Cluster)
    file = tmp_path / "shapes.yaml"
    file.write_text(json.dumps(PRETRAINING))
    assert command("pretrain", str(file), "--address", "http://head:8265") == 0
    assert taken == [preflight.check_pretraining(PRETRAINING)]
    told = capsys.readouterr().out
    assert told.startswith("shapes waits for a place on http://head:8265 as the job raystudy-shapes")
    assert command("pretrain", str(file), "--address", "http://head:8265", "--follow") == 0
    assert capsys.readouterr().out == told + "".join(f"{event_line(event)}\n" for event in study_events(1))
    assert command("pretrain", str(file), "--follow") == 2
    assert "--follow goes with --address" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_gives_what_a_local_store_does(home: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.start()
    try:
        shelf = Shelf(home, server.uri)
        shelf.add("c2")
        shelf.add("bare", extra=False)
        (source,) = fetch_sources(naming("models:/shapes@c2"), server.uri).values()
        assert (source.version, file_digest(source.file)) == ("1", source.digest)
        missing, bare = problems_of(lambda: fetch_sources(naming("models:/shapes@c3", "models:/shapes@bare"), server.uri))
        assert missing.endswith("shapes has no alias 'c3'; its aliases are bare, c2")
        assert "was not made by raystudy" in bare
        (problem,) = problems_of(lambda: fetch_sources(naming("models:/forms@c2"), server.uri))
        assert "there is no registered model 'forms'" in problem
    finally:
        server.kill()


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    code = caught.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.slow
def test_source_models_are_made_and_a_study_begins_with_them(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = empty_store(home)
    file, study = tmp_path / "shapes.yaml", tmp_path / "target.yaml"
    small = {"images_per_category": [4], "seeds": [0], "epochs": 1, "unit": "subset_epoch"}
    fixed = {"learning_rate": 1e-3, "batch_size": 8}
    both = ["supervised", "self_supervised"]
    file.write_text(json.dumps({**PRETRAINING, **small, "fixed": fixed, "categories": [2], "objective": both}))
    assert command("pretrain", str(file), "--inline", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(model["alias"], model["backbone"], model["version"] != "") for model in answer["models"]] == [
        ("c2", "models:/shapes@c2", True),
        ("c2-self", "models:/shapes@c2-self", True),
    ]
    assert all(0 <= model["val_accuracy"] <= 1 for model in answer["models"])
    registry = Registry(Store(uri))
    version = registry.find("shapes", alias="c2")
    assert version is not None
    assert version.tags["raystudy.categories"] == "2"
    assert len(version.tags["raystudy.classes_used"].split(", ")) == 2
    assert version.tags["raystudy.images_per_category"] == "4"
    card = read_model(registry.download(version, "extra_files", tmp_path / "fetched")).card
    assert (card["provenance"]["data"], card["provenance"]["categories"]) == ("sklearn:digits", 2)
    assert ", ".join(card["provenance"]["classes_used"]) == version.tags["raystudy.classes_used"]
    unlabelled = registry.find("shapes", alias="c2-self")
    assert unlabelled is not None
    assert (version.tags["raystudy.objective"], unlabelled.tags["raystudy.objective"]) == ("supervised", "self_supervised")
    kept = read_model(registry.download(unlabelled, "extra_files", tmp_path / "unlabelled"))
    assert kept.card["provenance"]["objective"] == "self_supervised"
    parts = {name.partition(".")[0] for name in kept.classifier.model.state_dict()}
    assert parts == {"backbone", "head"}, "no projection"
    bias = kept.classifier.model.head.bias
    assert (bias > -1e29).sum() == 2, "the class means of its own categories"
    assert command("pretrain", str(file), "--inline") == 2, "as `raystudy run` of a name that is taken"
    assert "there is a study 'shapes' already" in capsys.readouterr().err

    data = {"source": "sklearn:digits", "image_size": 32, "validation": 0.9}
    when = {"when": {"pretrained": True}}
    target = {
        "name": "target",
        "data": data,
        "factors": {
            "pretrained": {"choice": [True, False]},
            "source_objective": {"choice": both, **when},
        },
        "fixed": {**fixed, "source": "shapes", "source_categories": 2, "images_per_class": 2, "frozen_depth": "max"},
        "budget": {"trials": 3, "epochs": 1, "unit": "subset_epoch"},
        "search": {"sampler": "grid"},
        "early_stopping": "none",
        "keep_models": 1,
    }
    study.write_text(json.dumps(target))
    assert command("run", str(study), "--inline", "--json") == 0
    assert json.loads(capsys.readouterr().out)["trials"] == {"completed": 3}
    record = StudyRecord.fold(read_journal(StudyPaths.of("target").journal))
    noted = {address: note["objective"] for address, note in record.data["sources"].items()}
    assert noted == {"models:/shapes@c2": "supervised", "models:/shapes@c2-self": "self_supervised"}
    assert [dict(trial.config) for trial in record.trials.values()] == [
        {"pretrained": True, "source_objective": "supervised"},
        {"pretrained": True, "source_objective": "self_supervised"},
        {"pretrained": False},
    ]
    losses = {trial.last["train_loss"] for trial in record.trials.values()}
    assert len(losses) == 3, "each begins with other weights"
