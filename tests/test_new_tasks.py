"""Which classes are new, and which videos have them."""

import argparse

import numpy as np
import pytest

from vidpress.pipeline.evaluation import new_tasks
from vidpress.pipeline.evaluation.new_tasks import NewTasks, of_options, parse_held_out, stratified_classes

COUNTS = np.random.default_rng(0).permutation(np.geomspace(1, 10_000, 100).astype(int))


@pytest.mark.parametrize(("share", "expected"), [(0.2, 20), (0.5, 50), (0.001, 1), (0.37, 37), (0.99, 99)])
def test_a_share_is_chosen_among_frequent_and_rare_classes_alike(share, expected):
    chosen = stratified_classes(COUNTS, share, seed=0)
    assert len(set(chosen)) == len(chosen) == expected
    assert list(chosen) == sorted(chosen)
    rank = np.argsort(np.argsort(-COUNTS, kind="stable"))[list(chosen)]
    for run in np.array_split(np.arange(100), expected):
        assert np.isin(rank, run).sum() == 1
    assert stratified_classes(COUNTS, share, seed=0) == chosen


def test_seeds_choose_other_classes():
    chosen = [set(stratified_classes(COUNTS, 0.2, seed)) for seed in range(20)]
    assert len(set(map(frozenset, chosen))) == 20
    assert len(set.union(*chosen)) > 90


def make(held_out, num_classes=6, **options) -> NewTasks:
    return NewTasks(held_out, **{"input": (), "validation": (), "num_classes": num_classes, "seed": 0, **options})


def test_a_class_is_either_old_or_new():
    tasks = make((1, 4)).resolved(np.ones(6, int))
    assert tasks.old_classes(6).tolist() == [0, -1, 2, 3, -1, 5]
    assert tasks.new_classes().tolist() == [-1, 0, -1, -1, 1, -1]
    assert tasks.num_new == 2
    shared = make(0.5).resolved(np.ones(6, int))
    assert ((shared.old_classes(6) >= 0) != (shared.new_classes() >= 0)).all()
    other = make(None, num_classes=4)
    assert other.resolved(np.ones(6, int)) is other
    assert other.old_classes(6).tolist() == [0, 1, 2, 3, 4, 5]
    assert other.new_classes().tolist() == [0, 1, 2, 3]
    assert len({str(tasks.key()) for tasks in (tasks, shared, other)}) == 3
    with pytest.raises(ValueError, match="not chosen yet"):
        make(0.5).num_new  # noqa: B018


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ((1, 6), "lists class 6, but there are 6 classes"),
        ((0, 1, 2, 3, 4, 5), "makes 6 of 6 classes new: leave some on each side"),
        (0.999, "makes 6 of 6 classes new"),
    ],
)
def test_classes_must_be_left_on_both_sides(held_out, message):
    with pytest.raises(ValueError, match=message):
        make(held_out).resolved(np.ones(6, int))


def test_a_share_or_a_file_of_classes(tmp_path):
    path = tmp_path / "classes"
    path.write_text("7\n3\n\n3\n")
    assert parse_held_out(str(path)) == (3, 7)
    assert parse_held_out("0.25") == 0.25
    for text in ("0", "1", "-0.1", "2", "nan", str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_held_out(text)
    for content in ("", "3 x", "-1", "1.5", "9" * 20):
        path.write_text(content)
        with pytest.raises(argparse.ArgumentTypeError, match="must have the number of a class in each line"):
            parse_held_out(str(path))


def parsed(*arguments: str):
    parser = argparse.ArgumentParser()
    new_tasks.add_options(parser.add_argument_group("files"))
    return argparse.Namespace(**vars(parser.parse_args(arguments)), classes=6, seed=3)


def test_options():
    assert of_options(parsed()) is None
    assert of_options(parsed("--new_tasks", "0.5")) == make(0.5, seed=3)
    found = of_options(parsed("--new_tasks", "0.5", "--new_task_input", "/a", "/b"))
    assert found == make(0.5, seed=3, input=("/a", "/b"))
    other = ["--new_task_input", "/a", "--new_task_validation", "/b"]
    assert of_options(parsed(*other, "--new_task_classes", "9")) == make(
        None, num_classes=9, input=("/a",), validation=("/b",), seed=3
    )
    for wrong, message in (
        (["--new_task_input", "/a"], "--new_task_input needs --new_tasks or"),
        (["--new_task_classes", "9"], "--new_task_classes needs --new_tasks or"),
        (["--new_tasks", "0.5", "--new_task_classes", "9"], "is for another vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            of_options(parsed(*wrong))
