"""What is known to be wrong before anything starts: the study file, its images, its backbones, in one message."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from strategies import Plain, studies

from raystudy import preflight
from raystudy.errors import SpecError
from raystudy.spec import StudySpec
from raystudy.spec.text import dump_yaml, with_values

STUDY: Plain = {
    "name": "digits",
    "data": {"source": "sklearn:digits", "image_size": 32},
    "backbone": "efficientnet_lite0",
    "factors": {"frozen_depth": {"int": [0, "max"]}},
}


def changed(**changes: Any) -> Plain:
    data: Plain = with_values(STUDY, {key.replace("__", "."): value for key, value in changes.items()})
    return data


def places(call: Callable[[], object]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        call()
    return [problem.where for problem in caught.value.problems]


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(dump_yaml(STUDY))
    return file


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(studies())
def test_checking_changes_nothing_about_a_study_that_is_right(data: Plain) -> None:
    spec = preflight.check(data)
    assert spec == StudySpec.from_dict(data)
    assert preflight.check(spec.to_dict()) == spec


def test_name_and_address_given_on_the_command_line_replace_the_files(study_file: Path) -> None:
    spec = preflight.read_study(study_file, name="other", tracking_uri="http://host:5000")
    assert (spec.name, spec.tracking_uri) == ("other", "http://host:5000")


def test_a_name_given_on_the_command_line_is_checked_like_the_files(study_file: Path) -> None:
    assert places(lambda: preflight.read_study(study_file, name="../x", tracking_uri="ftp://x")) == ["name", "tracking_uri"]


def test_the_message_begins_with_the_file_and_the_number_of_problems(study_file: Path) -> None:
    with pytest.raises(SpecError) as caught:
        preflight.read_study(study_file, ["data.source=folder:/nowhere", "backbone=resnet5"])
    assert str(caught.value).startswith(f"{study_file}: 2 problems\n  data.source: ")


def test_file_images_backbone_and_depth_are_checked_in_one_go() -> None:
    data = changed(
        data__source="folder:/nowhere/images",
        data__validation="foldr:/x",
        data__test="sklearn:digit",
        fixed__batch_size=0,
        fixed__reinit_units=19,
        budget__trails=3,
    )
    named = ["budget.trails", "data.source", "data.test", "data.validation", "fixed.batch_size", "fixed.reinit_units"]
    assert sorted(places(lambda: preflight.check(data))) == named


def test_every_backbone_of_a_list_is_checked_at_its_place() -> None:
    assert places(lambda: preflight.check(changed(backbone=["resnet18", "resnt50", "file:/x.pth"]))) == [
        "backbone[1]",
        "backbone[2]",
    ]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"factors__frozen_depth": {"int": [0, 19]}}, "factors.frozen_depth.int[1]"),
        ({"factors__frozen_depth": {"int": [19, "max"]}}, "factors.frozen_depth.int[0]"),
        ({"factors__frozen_depth": {"choice": [0, 9, 19]}}, "factors.frozen_depth.choice[2]"),
        ({"factors__frozen_depth": {"choice": [18, "max"]}}, "factors.frozen_depth.choice[1]"),
        ({"factors__tuned_unit": {"int": [-1, 18]}}, "factors.tuned_unit.int[1]"),
        ({"fixed__tuned_unit": 18}, "fixed.tuned_unit"),
        ({"factors__reinit_units": {"int": [0, 19]}}, "factors.reinit_units.int[1]"),
        ({"search__points": [{"frozen_depth": 0}, {"frozen_depth": 19}]}, "search.points[1].frozen_depth"),
        ({"factors__dropout": {"uniform": [0, 0.5], "when": {"frozen_depth": 19}}}, "factors.dropout.when.frozen_depth"),
    ],
)
def test_what_counts_units_beyond_the_backbone_is_refused_at_its_place(change: dict[str, Any], place: str) -> None:
    assert places(lambda: preflight.check(changed(**change))) == [place]


def test_a_depth_at_the_end_of_the_backbone_is_accepted() -> None:
    spec = preflight.check(changed(factors__frozen_depth={"int": [0, 18]}, fixed__reinit_units=18))
    assert preflight.space_of(spec).at([1.0]) == {"frozen_depth": 18}


def test_max_and_every_depth_are_held_against_the_smallest_of_several_backbones() -> None:
    data = changed(backbone=["efficientnet_lite2", "resnet18"])
    assert preflight.smallest_unit_count(preflight.check(data)) == 9
    assert preflight.space_of(preflight.check(data)).at([0.0, 1.0])["frozen_depth"] == 9
    with pytest.raises(SpecError, match="got 10, but resnet18 has 9 units; expected at most 9"):
        preflight.check(with_values(data, {"fixed.reinit_units": 10}))


def test_a_number_in_quotes_for_a_share_is_not_taken_for_a_source() -> None:
    with pytest.raises(SpecError, match=r"data.validation: got the text '0.2', .*; write the number without quotes") as caught:
        preflight.check(changed(data__validation="0.2"))
    assert len(caught.value.problems) == 1


def test_changes_by_key_path_are_checked_and_none_leave_the_study_as_it_is() -> None:
    spec = preflight.check(STUDY)
    assert preflight.changing({}, title="x")(spec) is spec
    assert preflight.changing({"budget.trials": 5}, title="x")(spec).budget.trials == 5
    assert places(lambda: preflight.changing({"budget.trials": 0}, title="x")(spec)) == ["budget.trials"]


# A study that another machine will run


@pytest.mark.parametrize(
    "change",
    [
        {"data__source": "folder:/data/flowers"},
        {"data__source": "folder:s3://bucket/flowers"},
        {"data__source": "folder:gs://bucket/flowers"},
        {"data__source": "parquet:/data/a.parquet#image,label"},
        {"data__source": "parquet:s3://bucket/a.parquet"},
        {"data__source": "idx:/data/mnist"},
        {"data__source": "sklearn:digits"},
        {"data__source": "folder:/data/a", "data__validation": "folder:/data/b", "data__test": "folder:s3://bucket/c"},
        {"backbone": "resnet18@file:/weights/mine.safetensors"},
        {"backbone": "file:/weights/mine.safetensors"},
        {"backbone": ["resnet18", "file:/weights/mine.safetensors"]},
    ],
)
def test_what_only_a_cluster_can_see_is_left_for_it_to_check(change: dict[str, Any]) -> None:
    data = changed(factors={"learning_rate": {"uniform": [0.001, 0.1]}}, **change)
    if "backbone" in change or "/data" in str(change):
        assert places(lambda: preflight.check(data))  # they are not on this machine
    assert preflight.check(data, is_here=False).to_dict() == data


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"data__source": "folder:flowers"}, "data.source"),
        ({"data__source": "folder:./flowers"}, "data.source"),
        ({"data__source": "folder:~/flowers"}, "data.source"),
        ({"data__source": "parquet:a.parquet#image,label"}, "data.source"),
        ({"data__source": "idx:../mnist"}, "data.source"),
        ({"data__validation": "folder:flowers"}, "data.validation"),
        ({"data__test": "folder:~ada/flowers"}, "data.test"),
        ({"backbone": "resnet18@file:mine.safetensors"}, "backbone"),
        ({"backbone": "file:~/mine.safetensors"}, "backbone"),
        ({"backbone": ["resnet18", "resnet34@file:./mine.pth"]}, "backbone[1]"),
    ],
)
def test_a_path_that_means_a_place_on_this_machine_is_refused_for_a_cluster(change: dict[str, Any], place: str) -> None:
    with pytest.raises(SpecError) as caught:
        preflight.check(changed(**change), is_here=False)
    (problem,) = caught.value.problems
    assert problem.where == place
    assert "which the cluster cannot see" in problem.what
    assert "begins with /, or s3:// or gs://" in problem.accepted


def test_a_path_is_refused_for_a_cluster_even_where_it_exists_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowers" / "rose").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    data = changed(data__source="folder:flowers")
    assert preflight.check(data).data.source == "folder:flowers"
    assert places(lambda: preflight.check(data, is_here=False)) == ["data.source"]


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"data__source": "foldr:/data"}, "data.source", "did you mean folder:/data"),
        ({"data__source": "folder:"}, "data.source", "nothing follows"),
        ({"data__source": "sklearn:digit"}, "data.source", "digits"),
        ({"backbone": "resnet81"}, "backbone", "did you mean 'resnet18'"),
        ({"backbone": "resnt18@file:/weights/mine.safetensors"}, "backbone", "did you mean 'resnet18'"),
        ({"backbone": ["resnet18", "resnet43"]}, "backbone[1]", "did you mean 'resnet34'"),
        ({"budget__trails": 3}, "budget.trails", "did you mean trials"),
        ({"factors__frozen_depth": {"int": [0, 19]}}, "factors.frozen_depth.int[1]", "18 units"),
    ],
)
def test_what_can_be_known_here_is_refused_for_a_cluster_as_well(change: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        preflight.check(changed(**change), is_here=False)
    assert [problem.where for problem in caught.value.problems] == [place]


def test_depths_are_left_to_the_cluster_where_only_its_file_says_how_many_units_there_are() -> None:
    deep = {"int": [0, 900]}
    data = changed(backbone="file:/weights/mine.safetensors", factors__frozen_depth=deep)
    assert preflight.check(data, is_here=False).to_dict() == data


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(studies())
def test_a_study_that_is_right_here_is_right_for_a_cluster(data: Plain) -> None:
    assert preflight.check(data, is_here=False) == preflight.check(data)


WITHOUT_TORCH = """
import sys
from pathlib import Path
from raystudy import preflight
from raystudy.errors import SpecError
preflight.space_of(preflight.read_study(Path(sys.argv[1])))
try:  # what only building it can tell is not asked while something else is wrong
    preflight.read_study(Path(sys.argv[1]), ["backbone=timm:resnet10t", "budget.trials=0"])
except SpecError as error:
    assert len(error.problems) == 1, error
print(sorted({"torch", "timm", "ray", "mlflow", "sklearn"} & set(sys.modules)))
"""


def test_a_study_file_is_checked_without_importing_torch_ray_mlflow_or_scikit_learn(study_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(study_file)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "[]\n"
