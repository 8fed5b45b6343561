"""The teacher: probabilities of frozen models, without rounding, and which models cannot teach."""

import dataclasses

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC, random_model  # noqa: E402

from vidpress.model.features import FeatureSpec  # noqa: E402
from vidpress.model.networks.teacher import Teacher, TeacherError  # noqa: E402


def test_probabilities_are_the_mean_of_the_models_own():
    models = [random_model(SPEC, hidden, seed=seed) for seed, hidden in enumerate([(40,), (30, 20)])]
    x = np.random.default_rng(0).normal(size=(50, SPEC.input_size)).astype(np.float32)
    logits = [model.bottleneck(x) @ model.head[0] + model.head[1] for model in models]
    expected = np.mean([1 / (1 + np.exp(-each.astype(np.float64))) for each in logits], axis=0)
    np.testing.assert_allclose(Teacher(models, SPEC, 7)(tf.constant(x)), expected, atol=1e-5)


def test_mixed_precision_gives_nearly_the_same():
    models = [random_model(SPEC, (40, 20))]
    x = np.random.default_rng(0).normal(size=(50, SPEC.input_size)).astype(np.float32)
    exact, mixed = (Teacher(models, SPEC, 7, mixed_precision=on)(tf.constant(x)).numpy() for on in (False, True))
    assert (exact != mixed).any()
    np.testing.assert_allclose(mixed, exact, atol=0.02)


def test_no_gradient_reaches_the_teacher():
    teacher = Teacher([random_model(SPEC)], SPEC, 7)
    x = tf.ones((2, SPEC.input_size))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(teacher(x))
    assert tape.gradient(total, x) is None
    assert not any(variable.trainable for variable in teacher.variables)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "at least one"),
        ([dataclasses.replace(random_model(SPEC), head=None)], "no task head"),
        ([random_model(FeatureSpec.parse("rgb:32"))], "takes rgb:32"),
        ([random_model(SPEC), random_model(SPEC, num_classes=8)], "has 8 classes, not 7"),
    ],
)
def test_models_that_cannot_teach_are_refused(models, message):
    with pytest.raises(TeacherError, match=message):
        Teacher(models, SPEC, 7)


def test_a_teacher_may_have_been_trained_on_records_with_other_keys():
    other_keys = dataclasses.replace(SPEC, id_keys=("video",), labels_key="tags")
    Teacher([random_model(other_keys)], SPEC, 7)
