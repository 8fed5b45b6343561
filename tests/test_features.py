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
