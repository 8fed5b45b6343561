"""The committed results are those of their commands: the same command finds its finished points."""

import dataclasses
import shlex

import pytest
from conftest import REPO

from vidpress.pipeline import evaluate
from vidpress.pipeline.evaluation import plan as evaluation_plan
from vidpress.pipeline.evaluation.report import results as evaluation_results


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "yt8m", "yt8m-ideas", "yt8m-scores"])
def test_the_command_plans_the_points_that_are_there(name):
    folder = REPO / "docs" / "results" / name
    about = evaluation_results.load(folder).about
    argv = shlex.split(about["command"])[2:]
    kind = evaluate.chosen_kind(argv)
    args = evaluate.parser(kind).parse_args(argv)
    fingerprints = about["data"]
    context = dataclasses.replace(
        kind.context(args, "work"),
        training_sha256=fingerprints["training"]["sha256"],
        validation_sha256=fingerprints["validation"]["sha256"],
    )
    planned = {point.name(context) for task in evaluation_plan.make_plan(kind, args).all_tasks() for point in task}
    assert planned == {path.stem for path in (folder / "points").glob("*.json")}
