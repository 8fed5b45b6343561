"""The training loop: it learns, pays for bits, and a resumed run is the run that never stopped."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

import keras  # noqa: E402
import safetensors.numpy  # noqa: E402
from conftest import SPEC, random_model  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from vidpress.model.files import storage  # noqa: E402
from vidpress.model.networks import classifiers  # noqa: E402
from vidpress.model.networks.bottleneck import bottleneck_of  # noqa: E402
from vidpress.model.networks.many_rates import select_lmbda  # noqa: E402
from vidpress.model.networks.teacher import Teacher  # noqa: E402
from vidpress.model.records.synthetic import write_shards  # noqa: E402
from vidpress.model.training import checkpoints, loop, progress  # noqa: E402
from vidpress.model.training.options import TrainingOptions  # noqa: E402
from vidpress.model.training.training_data import load_videos  # noqa: E402

NEWEST = "step-00000008.safetensors"
OPTIONS = TrainingOptions(
    hidden=(20, 12),
    lmbda=0.01,
    steps=8,
    num_classes=6,
    batch_size=16,
    prior_banks=1,
    decay_steps=1000,
    checkpoint_every=100,
    validate_every=5,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    files = write_shards(folder, 2, 150, spec=SPEC, num_classes=OPTIONS.num_classes, frames=(2, 4))
    return [load_videos([str(file)], SPEC, OPTIONS.num_classes) for file in files]


def weights(network):
    """Of a network, with what was drawn of each seed."""
    return [variable.numpy().tobytes() for variable in network.variables]


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    """A network, its options and its work folder."""
    work_dir = tmp_path_factory.mktemp("training")
    options = dataclasses.replace(OPTIONS, lmbda=0.001, steps=120, learning_rate=0.01, validate_every=50)
    return loop.train(options, SPEC, videos[0], str(work_dir), validation=videos[1]), options, work_dir


def teacher_model(seed=0):
    return random_model(SPEC, num_classes=OPTIONS.num_classes, seed=seed)


@pytest.mark.parametrize(
    ("changes", "teachers"),
    [
        ({"input_dropout": 0.3}, []),
        ({"lmbda": 0.0}, []),
        ({"lmbda_range": (0.001, 0.02), "prior_banks": 4, "linear_bottleneck": 10}, []),
        ({"reconstruction": 2.0}, []),
        ({"lmbda": 0.0, "reconstruction": 2.0}, []),
        ({"reconstruction": 2.0}, [teacher_model()]),
        ({"hidden": (40,), "score_bottleneck": True}, [teacher_model()]),
    ],
)
def test_a_resumed_training_ends_with_the_same_bits(videos, tmp_path, monkeypatch, changes, teachers):
    options = dataclasses.replace(OPTIONS, **changes)
    through = loop.train(options, SPEC, videos[0], str(tmp_path / "through"), validation=videos[1], teachers=teachers)
    killed = dataclasses.replace(options, checkpoint_every=3)
    original = progress.Progress.add
    calls = []

    def add(self, task):
        calls.append(task)
        if len(calls) == 5:
            raise KeyboardInterrupt
        original(self, task)

    monkeypatch.setattr(progress.Progress, "add", add)
    with pytest.raises(KeyboardInterrupt):
        loop.train(killed, SPEC, videos[0], str(tmp_path / "killed"), teachers=teachers)
    keras.utils.clear_session()
    resumed = loop.train(killed, SPEC, videos[0], str(tmp_path / "killed"), teachers=teachers)
    assert len(calls) == 5 + options.steps - 3
    assert weights(resumed) == weights(through)


@pytest.mark.parametrize("stops", [(1,), (4, 5), (7,)])
def test_a_training_that_was_asked_to_stop_ends_with_the_same_bits(videos, tmp_path, stops):
    through = loop.train(OPTIONS, SPEC, videos[0], str(tmp_path / "through"))
    steps = iter(range(1, OPTIONS.steps + 1))
    for stop in stops:
        keras.utils.clear_session()
        with pytest.raises(loop.TrainingStopped) as stopped:
            loop.train(
                OPTIONS, SPEC, videos[0], str(tmp_path / "stopped"), asked_to_stop=lambda stop=stop: next(steps) == stop
            )
        assert stopped.value.step == stop
    keras.utils.clear_session()
    assert weights(loop.train(OPTIONS, SPEC, videos[0], str(tmp_path / "stopped"))) == weights(through)


def test_a_finished_training_is_left_alone(trained, videos):
    network, options, work_dir = trained
    assert weights(loop.train(options, SPEC, videos[0], str(work_dir))) == weights(network)


def test_a_finished_training_goes_on_to_more_steps(videos, tmp_path):
    longer = dataclasses.replace(OPTIONS, steps=12)
    through = loop.train(longer, SPEC, videos[0], str(tmp_path / "through"))
    for options in (OPTIONS, longer):
        keras.utils.clear_session()
        network = loop.train(options, SPEC, videos[0], str(tmp_path / "in_two"))
    assert weights(network) == weights(through)
    # By default, more steps would have had another schedule from the first one on.
    by_default = dataclasses.replace(longer, decay_steps=0)
    with pytest.raises(loop.TrainingError, match=r"with decay_steps 1000, not 1 .*: give decay_steps 1000 to resume"):
        loop.train(by_default, SPEC, videos[0], str(tmp_path / "in_two"))


def test_a_training_for_many_rates_can_be_had_at_each(videos, tmp_path):
    options = dataclasses.replace(OPTIONS, lmbda_range=(0.001, 0.02))
    network = loop.train(options, SPEC, videos[0], str(tmp_path))
    other = loop.train(dataclasses.replace(options, lmbda=0.001), SPEC, videos[0], str(tmp_path))
    x = np.asarray(videos[1].x)
    z, other_z = (classifiers.activations_model(each)(x).numpy() for each in (network, other))
    assert (z != other_z).any()
    select_lmbda(other, options.lmbda)
    assert weights(other) == weights(network)
    changed = dataclasses.replace(options, lmbda_range=(0.002, 0.02))
    with pytest.raises(loop.TrainingError, match=r"with lmbda_range 0.001 0.02, not 0.002 0.02"):
        loop.train(changed, SPEC, videos[0], str(tmp_path))
    for lmbda in (options.lmbda, 2 * options.lmbda):
        for_one = dataclasses.replace(options, lmbda_range=None, lmbda=lmbda)
        with pytest.raises(loop.TrainingError, match=r"with lmbda_range 0.001 0.02, not none"):
            loop.train(for_one, SPEC, videos[0], str(tmp_path))


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), True),
        (RuntimeError("OOM when allocating tensor with shape[3]"), True),
        (MemoryError(), True),
        (RuntimeError("ZOOM lens"), False),
        (OSError(28, "OOM", "/mnt/OOM/run"), False),
        (loop.TrainingError("/mnt/OOM/run/checkpoints cannot be written"), False),
    ],
)
def test_only_a_lack_of_memory_is_called_so(error, explained):
    with pytest.raises(type(error) if not explained else loop.TrainingError) as info, loop.enough_memory():
        raise error
    assert ("Not enough memory" in str(info.value)) == explained


def test_a_probability_of_1_is_no_threshold_for_scores():
    for lmbda, lmbda_range in ((1.5, None), (0.5, (0.25, 1.0))):
        with pytest.raises(ValueError, match="must be below 1 with score_bottleneck"):
            dataclasses.replace(OPTIONS, score_bottleneck=True, lmbda=lmbda, lmbda_range=lmbda_range)


def test_a_trained_network_is_loaded_without_its_data(trained, videos, tmp_path):
    network, options, work_dir = trained
    loaded = loop.load_trained(str(work_dir))
    assert weights(loaded.network) == weights(network)
    defaults = {"checkpoint_every": OPTIONS.checkpoint_every, "validate_every": options.validate_every}
    assert dataclasses.replace(loaded.options, **defaults) == options
    assert (loaded.spec, loaded.teachers) == (SPEC, [])
    assert loaded.training_data == videos[0].fingerprint["sha256"]
    with pytest.raises(loop.TrainingError, match=r"does not contain a training run: it has no options\.json"):
        loop.load_trained(str(tmp_path))
    (tmp_path / "options.json").write_bytes((work_dir / "options.json").read_bytes())
    with pytest.raises(loop.TrainingError, match="without a checkpoint"):
        loop.load_trained(str(tmp_path))


def test_a_checkpoint_that_does_not_fit_is_an_error(videos, tmp_path):
    loop.train(OPTIONS, SPEC, videos[0], str(tmp_path))
    told = (tmp_path / "options.json").read_text()
    other = json.loads(told) | {"hidden": [20, 13]}
    (tmp_path / "options.json").write_text(json.dumps(other))
    with pytest.raises(loop.TrainingError, match=r"another version of vidpress: .*shape.* Remove the folder"):
        loop.load_trained(str(tmp_path))
    (tmp_path / "options.json").write_text(told)
    (checkpoint,) = tmp_path.glob("checkpoints/*")
    assert checkpoint.name == "step-00000008.safetensors"
    whole = checkpoint.read_bytes()
    tensors = safetensors.numpy.load(whole)
    without = {name: tensor for name, tensor in tensors.items() if name != "crc32"}
    for damaged in (
        whole[: len(whole) // 2],
        whole[:5],
        whole + b"x",
        b"\xff" * 8 + whole[8:],
        safetensors.numpy.save(without),
        safetensors.numpy.save(tensors | {"network.0": tensors["network.0"] + 1}),
        safetensors.numpy.save({f"_{name}": tensor for name, tensor in without.items()} | {"crc32": tensors["crc32"]}),
    ):
        checkpoint.write_bytes(damaged)
        for go_on in (
            lambda: loop.train(dataclasses.replace(OPTIONS, steps=9), SPEC, videos[0], str(tmp_path)),
            lambda: loop.load_trained(str(tmp_path)),
        ):
            with pytest.raises(loop.TrainingError, match=r"step-00000008\.safetensors is damaged"):
                go_on()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_a_value(path):
    """As a disk might, and no format notices."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "damage", [flip, change_a_value, halve, pathlib.Path.unlink, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_checkpoint_is_passed_over(trained_twice, tmp_path, videos, capfd, damage):
    options, through, folder = trained_twice
    shutil.copytree(folder, tmp_path / "work")
    names = [path.name for path in sorted((tmp_path / "work" / "checkpoints").iterdir())]
    assert names == ["step-00000006.safetensors", NEWEST]
    damage(tmp_path / "work" / "checkpoints" / NEWEST)
    keras.utils.clear_session()
    network = loop.train(options, SPEC, videos[0], str(tmp_path / "work"))
    assert weights(network) == through
    said = capfd.readouterr().err
    if damage is pathlib.Path.unlink:
        assert "is damaged" not in said  # it is as if it had never been
    else:
        assert f"{NEWEST} is damaged" in said
        assert "Using an older checkpoint" in said
    assert "Resuming from step 6" in said
    keras.utils.clear_session()
    assert weights(loop.load_trained(str(tmp_path / "work")).network) == through


@pytest.fixture(scope="module")
def trained_twice(videos, tmp_path_factory):
    """Options, the weights at the end, and a folder with checkpoints at steps 6 and 8 of 8."""
    folder = tmp_path_factory.mktemp("twice")
    options = dataclasses.replace(OPTIONS, checkpoint_every=6)
    return options, weights(loop.train(options, SPEC, videos[0], str(folder))), folder


@pytest.mark.parametrize("name", ["options.json", "checkpoints", NEWEST])
def test_what_there_is_no_permission_for_is_not_called_damaged(trained_twice, videos, tmp_path, monkeypatch, name):
    options, _, folder = trained_twice
    shutil.copytree(folder, tmp_path / "work")
    (path,) = (tmp_path / "work").rglob(name)

    def refusing(function, *what):
        def refuse(given, *args, **kwargs):
            if os.fspath(given) == str(path):
                raise PermissionError(errno.EACCES, *what)
            return function(given, *args, **kwargs)

        return refuse

    said = f"Failed to open local file '{path}'. Detail: [errno 13] Permission denied"  # by Arrow
    monkeypatch.setattr(storage, "open_input", refusing(storage.open_input, said))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir, os.strerror(errno.EACCES), str(path)))
    for go_on in (
        lambda: loop.train(dataclasses.replace(options, steps=9), SPEC, videos[0], str(tmp_path / "work")),
        lambda: loop.load_trained(str(tmp_path / "work")),
    ):
        with pytest.raises(loop.TrainingError) as error:
            go_on()
        assert str(error.value) == (
            f"{path} cannot be read: there is no permission: give it, or run as a user who has it."
        )


def test_what_cloud_storage_may_not_give_is_not_called_damaged(trained_twice, monkeypatch):
    _, _, folder = trained_twice
    original = storage.read_bytes

    def refuse(path, **kwargs):
        if path.endswith(NEWEST):
            raise PermissionError(f"{path} cannot be reached: 403 Forbidden")
        return original(path, **kwargs)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(
        loop.TrainingError, match=rf"{NEWEST} cannot be read: .*{NEWEST} cannot be reached: 403 Forbidden\.$"
    ):
        loop.load_trained(str(folder))


@pytest.mark.parametrize("begun", [False, True])
def test_checkpoints_that_cannot_be_written_are_refused_before_any_step(trained_twice, videos, tmp_path, begun):
    options, _, folder = trained_twice
    (tmp_path / "work").mkdir()
    if begun:
        shutil.copy(folder / "options.json", tmp_path / "work")
    (tmp_path / "work" / "checkpoints").touch()
    with pytest.raises(loop.TrainingError, match="checkpoints cannot be written: a part of the path is a file"):
        loop.train(options, SPEC, videos[0], str(tmp_path / "work"))
    assert not (tmp_path / "work" / "tensorboard").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"\xff", b'{"hidden": [12', b"[" * 100_000])
def test_a_damaged_list_of_options_is_an_error(videos, trained, tmp_path, content):
    _, options, work_dir = trained
    shutil.copytree(work_dir, tmp_path / "work")
    (tmp_path / "work" / "options.json").write_bytes(content)
    for go_on in (
        lambda: loop.train(options, SPEC, videos[0], str(tmp_path / "work")),
        lambda: loop.load_trained(str(tmp_path / "work")),
    ):
        with pytest.raises(loop.TrainingError, match=r"options\.json is damaged.* Remove the folder of that"):
            go_on()


@pytest.mark.parametrize(
    "change", [{"hidden": "12"}, {"lmbda": "x"}, {"features": 5}, {"teachers": 1}, {"lmbda_range": [1]}, {"seed": 0.5}]
)
def test_options_of_another_kind_are_an_error(trained, tmp_path, change):
    _, _, work_dir = trained
    shutil.copytree(work_dir, tmp_path / "work")
    path = tmp_path / "work" / "options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(loop.TrainingError, match=r"options\.json is damaged"):
        loop.load_trained(str(tmp_path / "work"))


def test_a_training_does_not_go_back(trained, videos):
    _, options, work_dir = trained
    with pytest.raises(loop.TrainingError, match="at step 120, beyond steps=119"):
        loop.train(dataclasses.replace(options, steps=119), SPEC, videos[0], str(work_dir))


def test_training_learns_and_bits_fall_with_lmbda(trained, videos, tmp_path):
    network, options, _ = trained
    expensive = dataclasses.replace(options, lmbda=0.1)
    gap, bits = [], []
    for each in (network, loop.train(expensive, SPEC, videos[0], str(tmp_path))):
        bottleneck = bottleneck_of(each)
        bottleneck.bits.reset_state()
        gap.append(progress.evaluate_network(each, videos[1]).gap)
        bits.append(float(bottleneck.bits.result()))
    untrained = classifiers.build_network(SPEC.input_size, options.hidden, options.num_classes, lmbda=0.001)
    assert gap[0] > progress.evaluate_network(untrained, videos[1]).gap + 0.1
    assert bits[1] < bits[0]


def test_a_network_learns_what_its_teacher_says(videos, tmp_path):
    options = dataclasses.replace(OPTIONS, lmbda=0.001, steps=200, learning_rate=0.01)
    x = np.asarray(videos[1].x)
    teacher, other = ([teacher_model(seed)] for seed in (1, 2))
    network = loop.train(options, SPEC, videos[0], str(tmp_path), teachers=teacher)
    labels = [Teacher(models, SPEC, options.num_classes)(tf.constant(x)) for models in (teacher, other)]
    loss = [float(classifiers.task_loss(each, network(x, training=False))) for each in labels]
    prior = classifiers.build_network(SPEC.input_size, options.hidden, options.num_classes, lmbda=0.001)
    assert loss[0] < 0.8 * float(classifiers.task_loss(labels[0], prior(x, training=False)))
    assert loss[0] < 0.6 * loss[1]


def test_a_training_with_another_teacher_is_refused(videos, tmp_path):
    loop.train(OPTIONS, SPEC, videos[0], str(tmp_path), teachers=[teacher_model(1)])
    with pytest.raises(loop.TrainingError, match="contains a training run with teachers "):
        loop.train(OPTIONS, SPEC, videos[0], str(tmp_path), teachers=[teacher_model(2)])


def scalars_in(work_dir):
    """What TensorBoard shows: values by tag and step."""
    (log,) = (work_dir / "tensorboard").iterdir()
    events = EventAccumulator(str(log))
    events.Reload()
    return {
        tag: {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }


def test_progress_is_written_down(trained):
    _, options, work_dir = trained
    scalars = scalars_in(work_dir)
    assert set(scalars) == {
        "train/task_loss",
        "train/learning_rate",
        "train/bits_per_video",
        "validation/gap",
        "validation/hit_at_1",
        "validation/perr",
        "validation/mean_ap",
        "validation/bits_per_video",
    }
    assert list(scalars["train/task_loss"]) == list(scalars["validation/gap"]) == [50, 100, 120]
    assert scalars["train/task_loss"][120] < scalars["train/task_loss"][50]
    assert scalars["train/learning_rate"][120] == pytest.approx(options.learning_rate)


@pytest.mark.parametrize(("steps", "decay_steps"), [(300_000, 1000), (50_000, 1000), (3000, 60), (20, 1)])
def test_short_trainings_end_with_small_steps_too(steps, decay_steps):
    assert TrainingOptions(hidden=(5,), lmbda=0, steps=steps).decay_steps == decay_steps
    assert TrainingOptions(hidden=(5,), lmbda=0, steps=steps, decay_steps=7).decay_steps == 7


def test_the_learning_rate_falls(videos, tmp_path):
    options = dataclasses.replace(OPTIONS, steps=100, decay_steps=30, lmbda=0.0, hidden=(3,))
    loop.train(options, SPEC, videos[0], str(tmp_path))
    rates = scalars_in(tmp_path)["train/learning_rate"]
    assert rates == pytest.approx({50: options.learning_rate * 0.94, 100: options.learning_rate * 0.94**3})


def test_evaluation_of_a_part_takes_it_evenly(videos):
    network = classifiers.build_network(SPEC.input_size, (5,), OPTIONS.num_classes, lmbda=0)
    assert progress.evaluate_network(network, videos[0]).num_videos == 150
    assert progress.evaluate_network(network, videos[0], max_videos=20).num_videos == 20


def test_a_training_from_before_an_option_existed_is_resumed_with_its_default(trained, videos, tmp_path):
    _, options, work_dir = trained
    shutil.copytree(work_dir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / checkpoints.OPTIONS_FILE
    values = json.loads(path.read_text())
    del values["score_bottleneck"], values["teachers"]
    path.write_text(json.dumps(values))
    loop.train(options, SPEC, videos[0], str(tmp_path))
    with pytest.raises(loop.TrainingError, match="contains a training run with width_multiplier 1, not 2"):
        loop.train(dataclasses.replace(options, width_multiplier=2), SPEC, videos[0], str(tmp_path))


@pytest.mark.parametrize("change", [{"lmbda": 0.02}, {"hidden": (20, 13)}, {"seed": 5}])
def test_another_training_in_the_folder_is_refused(trained, videos, change):
    _, options, work_dir = trained
    (name,) = change
    with pytest.raises(loop.TrainingError, match=f"contains a training run with {name} "):
        loop.train(dataclasses.replace(options, **change), SPEC, videos[0], str(work_dir))


def test_other_data_are_refused(trained, videos):
    _, options, work_dir = trained
    with pytest.raises(loop.TrainingError, match="contains a training run on other data"):
        loop.train(options, SPEC, videos[1], str(work_dir))


def test_a_diverged_training_stops(videos, tmp_path):
    options = dataclasses.replace(OPTIONS, steps=100, learning_rate=1e30)
    with pytest.raises(
        loop.TrainingError, match=r"The loss is .* lower learning_rate=1e\+30 or prior_learning_rate=0.01"
    ):
        loop.train(options, SPEC, videos[0], str(tmp_path))
    assert not list(pathlib.Path(tmp_path).glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("steps", -1), ("batch_size", 0), ("learning_rate", np.nan), ("lmbda", -1), ("hidden", (0,))),
        *(("input_dropout", 1), ("lmbda_range", (0.02, 0.001)), ("lmbda_range", (0, 0.02)), ("lmbda_range", (0.1, 1))),
    ],
)
def test_unusable_options_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        dataclasses.replace(OPTIONS, **{name: value})
