"""How far an evaluation is, from its finished points."""

import pytest

from vidpress.pipeline.evaluation.points import CodecPoint, Context, ModelPoint
from vidpress.pipeline.evaluation.progress import Progress, duration


def model(method, seed, lmbda=0.1, banks=1):
    options = {"hidden": (20,), "lmbda": lmbda, "seed": seed, "banks": banks}
    return ModelPoint(method, tuple(sorted(options.items())))


def finish(context, point, train, measure):
    seconds = {"train": train, "measure": measure} if isinstance(point, ModelPoint) else {"fit": measure}
    record = dict.fromkeys(("method", "hidden", "validation", "training")) | {"seconds": seconds}
    context.save_record(point.name(context), record)


def test_the_rest_takes_as_long_as_what_is_like_it(tmp_path):
    context = Context((), (), "", 10, str(tmp_path), "")
    baselines = [model("baseline", seed, lmbda=0.0) for seed in range(2)]
    # Frozen in two ways, so that one training is enough for both.
    shared = [tuple(model(method, seed, banks=banks) for banks in (1, 4)) for method in "ab" for seed in range(2)]
    rivals = [tuple(CodecPoint("pq", size, baselines[0], "baseline") for size in (1, 2, 4))]
    tasks = [*((point,) for point in baselines), *shared, *rivals]
    progress = Progress(tasks, context, 1)
    assert progress.text() == "0 of 13 points"
    finish(context, baselines[0], 100, 20)
    # Another baseline; four trainings and eight measurements as long as the baseline's; nothing is known of rivals.
    assert progress.text() == "1 of 13 points, more than 11 min left"  # 120 + 4 * 100 + 8 * 20
    finish(context, rivals[0][0], 0, 30)
    assert progress.text() == "2 of 13 points, about 12 min left"  # and 60
    finish(context, shared[0][0], 1000, 40)
    # 120 + the second half of this task + a training of its method + two of the mean of all networks' trainings
    assert progress.text() == "3 of 13 points, about 42 min left"  # 120 + 40 + 1080 + 2 * (550 + 60) + 60
    assert Progress(tasks, context, 4).text() == "3 of 13 points, about 10 min left"
    for task in tasks:
        for point in task:
            finish(context, point, 1, 1)
    assert progress.text() == "13 of 13 points"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.2, "3 s"), (99, "99 s"), (100, "2 min"), (3590, "1 h 0 min"), (4800, "1 h 20 min"), (36_000, "10 h")],
)
def test_durations_are_read_by_people(seconds, text):
    assert duration(seconds) == text
