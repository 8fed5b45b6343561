"""The videos of an evaluation: those of the old task, and those of new ones, read once in a process."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from vidpress.model.features import FeatureSpec
from vidpress.pipeline.evaluation.new_tasks import NewTaskError, NewTasks
from vidpress.pipeline.evaluation.points import Context
from vidpress.pipeline.training import jobs

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos


def choose_classes(context: Context) -> Context:
    """Return the context with the classes that are new, if a share of them is to be chosen.

    Raises:
      NewTaskError: If they cannot be chosen so, or some data have no video with an old or a new class.
    """
    if context.new_tasks is None:
        return context
    labels = _load_once(context.input, context.spec, context.classes).labels
    counts = np.bincount(labels, minlength=context.classes)
    tasks = context.new_tasks.resolved(counts)
    context = dataclasses.replace(context, new_tasks=tasks)
    for kind, parts in (("old", load_data(context)), ("new", load_new_task_data(context, tasks))):
        for use, videos in zip(("train", "measure"), parts, strict=True):
            if not len(videos):
                raise NewTaskError(f"No video to {use} on has one of the {kind} classes: give others, or more videos.")
    return context


@functools.lru_cache(maxsize=2)
def load_data(context: Context) -> tuple[LabelledVideos, LabelledVideos]:
    """Return the training and the validation videos, with the labels of the old classes alone."""
    return _old(context.input, context), _old(context.validation, context)


@functools.lru_cache(maxsize=2)
def load_new_task_data(context: Context, new_tasks: NewTasks) -> tuple[LabelledVideos, LabelledVideos]:
    """Return the videos that heads for the new classes are trained and measured on, with the labels of these alone."""
    patterns = new_tasks.input or context.input, new_tasks.validation or context.validation
    training, validation = (_load_once(each, context.spec, new_tasks.num_classes) for each in patterns)
    classes = new_tasks.new_classes()
    return training.relabelled(classes, "new"), validation.relabelled(classes, "new")


def _old(patterns: tuple[str, ...], context: Context) -> LabelledVideos:
    videos = _load_once(patterns, context.spec, context.classes)
    if context.new_tasks is None or context.new_tasks.held_out is None:
        return videos
    classes = context.new_tasks.old_classes(context.classes)
    return videos.relabelled(classes, f"without {np.flatnonzero(classes < 0).tolist()}")


@functools.lru_cache(maxsize=4)
def _load_once(patterns: tuple[str, ...], features: FeatureSpec, classes: int) -> LabelledVideos:
    return jobs.load_videos(patterns, features, classes)
