"""The alerts of Dataflow jobs are what Cloud Monitoring takes; Airflow's environment has the service's own types."""

import json

import pytest
from conftest import REPO
from google.cloud.monitoring_v3 import AlertPolicy
from google.protobuf.json_format import ParseError

ALERTS = sorted((REPO / "dataflow_templates" / "alerts").glob("*.json"))


@pytest.mark.parametrize("path", ALERTS, ids=lambda path: path.stem)
def test_alerts_are_the_services_own_type(path):
    policy = AlertPolicy.from_json(path.read_text())
    assert policy.combiner == AlertPolicy.ConditionCombinerType.OR
    (condition,) = policy.conditions
    assert condition.display_name
    assert condition.condition_threshold.filter or condition.condition_matched_log.filter


def test_a_field_that_the_service_does_not_know_is_noticed():
    fields = json.loads(ALERTS[0].read_text())
    fields["conditions"][0]["conditionThreshold"]["treshold"] = 1
    with pytest.raises(ParseError, match="treshold"):
        AlertPolicy.from_json(json.dumps(fields))
