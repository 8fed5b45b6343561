import json

import numpy as np
import pytest

from vidpress.model.features import Feature, FeatureSpec


def test_default_is_youtube_8m():
    spec = FeatureSpec()
    assert spec.input_size == 1152
    assert [feature.mean_name for feature in spec.features] == ["mean_rgb", "mean_audio"]


def test_parse_is_the_reverse_of_str():
    assert FeatureSpec.parse("rgb:1024,audio:128") == FeatureSpec()
    assert str(FeatureSpec.parse("audio_embedding:128")) == "audio_embedding:128"


@pytest.mark.parametrize("text", ["", "rgb", "rgb:", ":5", "rgb:x", "rgb:1024;audio:128", "rgb:-3"])
def test_parse_refuses_what_is_not_name_and_size(text):
    with pytest.raises(ValueError, match=r"is not name:size; an example is"):
        FeatureSpec.parse(text)


def test_refuses_repeated_and_empty_features():
    with pytest.raises(ValueError, match="each named once"):
        FeatureSpec.parse("rgb:3,rgb:4")
    with pytest.raises(ValueError, match="must be at least 1"):
        Feature("rgb", 0)


def test_json_round_trip():
    spec = FeatureSpec(features=(Feature("a", 3),), id_keys=("key",), labels_key="classes", quantized_max=1.0)
    assert FeatureSpec.from_json(spec.to_json()) == spec


def test_dequantize_is_the_datasets_formula():
    """The values that the data set's documentation gives for 0 and 255."""
    np.testing.assert_array_equal(FeatureSpec().dequantize(np.array([0.0, 255.0])), [-1.9921875, 2.0078125])


@pytest.mark.parametrize("text", ["a:3:float", "a:3:float:0.5,b:2", "RGB/feature/floats:24:float:-2.5"])
def test_float_features_round_trip(text):
    spec = FeatureSpec.parse(text)
    assert spec.features[0].kind == "float"
    assert str(spec) == text
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_explicit_defaults_are_the_short_form():
    assert str(FeatureSpec.parse("a:3:uint8,b:2:float:1")) == "a:3,b:2:float"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:3:int", "is of kind 'int'"),
        ("a:3:float:x", "has the scale 'x', which is not a number"),
        ("a:3:float:0", "must be a number other than 0"),
        ("a:3:float:nan", "must be a number other than 0"),
        ("a:3:uint8:2", "8-bit frames has a scale"),
        ("a:3:float:1:1", "is not name:size"),
        ("a:99999999", "at most 16777216"),
        ("a:16777216,b:1", "more than 16,777,216"),
    ],
)
def test_odd_features_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpec.parse(text)


def test_json_of_youtube_8m_is_what_it_always_was():
    """Headers of shards and model files are made of it."""
    assert json.dumps(FeatureSpec().to_json(), sort_keys=True) == (
        '{"features": [{"name": "rgb", "size": 1024}, {"name": "audio", "size": 128}], "id_keys": ["id", "video_id"], '
        '"labels_key": "labels", "quantized_max": 2.0, "quantized_min": -2.0}'
    )
    whole = FeatureSpec.from_json({**FeatureSpec().to_json(), "quantized_max": 2, "quantized_min": -2})
    assert json.dumps(whole.to_json()["quantized_max"]) == "2"


@pytest.mark.parametrize(
    "change",
    [
        {"features": 3},
        {"features": None},
        {"features": []},
        {"features": [1]},
        {"features": [{"name": 1, "size": 2}]},
        {"features": [{"name": "a", "size": 1.5}]},
        {"features": [{"name": "a", "size": True}]},
        {"features": [{"name": "a", "size": 10**400}]},
        {"features": [{"name": "a", "size": 0}]},
        {"features": [{"size": 1}]},
        {"features": [{"name": "", "size": 1}]},
        {"features": [{"name": "a" * 300, "size": 1}]},
        {"features": [{"name": "\ud800", "size": 1}]},
        {"features": [{"name": "\x1b[31m", "size": 1}]},
        {"features": [{"name": f"a{index}", "size": 1} for index in range(300)]},
        {"features": [{"name": "a", "size": 1, "kind": "double"}]},
        {"features": [{"name": "a", "size": 1, "kind": "float", "scale": float("inf")}]},
        {"id_keys": "id"},
        {"id_keys": []},
        {"id_keys": [3]},
        {"labels_key": None},
        {"labels_key": ""},
        {"quantized_min": float("nan")},
        {"quantized_min": float("-inf")},
        {"quantized_max": "2"},
        {"quantized_max": 10**400},
    ],
    ids=str,
)
def test_json_of_strangers_is_refused_with_a_reason(change):
    with pytest.raises(ValueError, match="feature spec"):
        FeatureSpec.from_json({**FeatureSpec().to_json(), **change})


@pytest.mark.parametrize("fields", [None, 3, [], "x", {}])
def test_json_that_is_no_spec_is_refused(fields):
    with pytest.raises(ValueError, match="feature spec has no features"):
        FeatureSpec.from_json(fields)
