"""The Flex Templates: their metadata say what the jobs' parsers do, and the service's own types take what they send."""

import argparse
import json
import re
import shlex
import subprocess
import sys

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, WorkerOptions
from conftest import REPO
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpress.pipeline import compact, decode, encode
from vidpress.transforms import metrics

TEMPLATES = REPO / "dataflow_templates"
JOBS = {"encode": encode, "decode": decode, "compact": compact}

dataflow = pytest.importorskip("google.cloud.dataflow", reason="needs the extra vidpress[gcp]")


def service_message(message_type, fields: dict):
    """Parse JSON as the service's own message type, and refuse what the service does not know."""
    return message_type(json_format.ParseDict(fields, message_type.pb()()))


def metadata(job: str) -> dict:
    return json.loads((TEMPLATES / job / "metadata.json").read_text())


def options(job: str) -> dict[str, argparse.Action]:
    """Return the options that a template has.

    That is not the one for runners that nobody tested, which Dataflow is not, nor the one that launches no job.
    """
    without = ("help", "allow_untested_runner", "expire")
    return {action.dest: action for action in JOBS[job].parser()._actions if action.dest not in without}


PARAMETERS = [
    pytest.param(job, parameter, id=f"{job}-{parameter['name']}")
    for job in JOBS
    for parameter in metadata(job)["parameters"]
]


def accepts(action: argparse.Action, text: str) -> bool:
    try:
        return (action.type or str)(text) is not None
    except (argparse.ArgumentTypeError, ValueError):
        return False


@pytest.mark.parametrize("job", JOBS)
def test_metadata_is_the_services_own_type(job):
    fields = metadata(job)
    message = service_message(dataflow.TemplateMetadata, fields)
    assert message.name == f"vidpress {job}"
    assert message.description == JOBS[job].parser().description
    for parameter in message.parameters:
        assert parameter.label
        assert parameter.param_type != dataflow.ParameterType.DEFAULT


def test_a_field_that_the_service_does_not_know_is_noticed():
    fields = metadata("decode")
    fields["parameters"][1]["paramtype"] = "TEXT"
    with pytest.raises(json_format.ParseError, match="paramtype"):
        service_message(dataflow.TemplateMetadata, fields)


@pytest.mark.parametrize("job", JOBS)
def test_metadata_has_every_option_in_order(job):
    assert [parameter["name"] for parameter in metadata(job)["parameters"]] == list(options(job))


@pytest.mark.parametrize(("job", "parameter"), PARAMETERS)
def test_parameter_is_as_the_parser_has_it(job, parameter):
    action = options(job)[parameter["name"]]
    assert parameter.get("isOptional", False) == (not action.required)
    default = str(action.default).lower() if isinstance(action.default, bool) else action.default
    assert parameter.get("defaultValue") == (None if default is None else str(default))
    help_text = action.help % {"default": action.default}
    assert parameter["helpText"].startswith(help_text[0].upper() + help_text[1:] + ".")
    assert [option["value"] for option in parameter.get("enumOptions", ())] == list(action.choices or ())
    if parameter["paramType"] != "ENUM":
        assert parameter["regexes"]
        for regex in parameter["regexes"]:
            assert regex.startswith("^")
            assert regex.endswith("$")
            assert "defaultValue" not in parameter or re.fullmatch(regex, parameter["defaultValue"])


@pytest.mark.parametrize(("job", "parameter"), PARAMETERS)
@settings(max_examples=50)
@given(data=st.data())
def test_what_a_regex_lets_through_the_parser_takes(job, parameter, data):
    action = options(job)[parameter["name"]]
    for regex in parameter.get("regexes", ()):
        text = data.draw(st.from_regex(regex, fullmatch=True, alphabet=st.characters(codec="ascii")))
        assert accepts(action, text.removesuffix("\n"))


@pytest.mark.parametrize(
    ("job", "name", "good", "bad"),
    [
        ("encode", "num_shards", ["1", "10", "100", "007", "100000"], ["0", "00", "-1", "1.5", "", "many", "100001"]),
        (
            "encode",
            "max_bad_fraction",
            ["0", "1", "0.01", "0.5", ".25", "1.0", "1e-3", "2.5e-05"],
            ["1.1", "-0.1", "2", "1e3", "9e-0", "nan", "", "1 %"],
        ),
        ("encode", "id_key", ["video_id", "clip/data_path"], ["", "a\nb"]),
        ("encode", "labels_key", ["labels"], [""]),
        ("encode", "min_age", ["0", "30", "0.5"], ["", "-1", "nan", "30m"]),
        ("encode", "append", ["true", "false"], ["", "yes", "True", "1"]),
        ("encode", "input", ["gs://b/a.tfrecord", "gs://b/c/*/d*.gz"], ["gs://b", "gs://b/", "/data/*", "s3://b/a"]),
        ("encode", "model", ["gs://b/m.safetensors"], ["gs://b/m", "m.safetensors"]),
        ("encode", "output", ["gs://b/set", "gs://b/set/2026"], ["set", "gs://b"]),
        ("decode", "input", ["gs://b/set"], ["set", "gs://"]),
        ("decode", "output", ["gs://b/features"], ["features"]),
        ("compact", "data_set", ["gs://b/set"], ["set", "gs://b/"]),
        ("compact", "num_shards", ["1", "100000"], ["0", "1.5", ""]),
    ],
)
def test_regexes_tell_good_from_bad(job, name, good, bad):
    (parameter,) = (parameter for parameter in metadata(job)["parameters"] if parameter["name"] == name)
    for text in good:
        assert all(re.fullmatch(regex, text) for regex in parameter["regexes"]), text
    for text in bad:
        assert not all(re.fullmatch(regex, text) for regex in parameter["regexes"]), text


def test_the_costs_in_the_docs_are_the_scripts():
    """The command that docs/dataflow.md gives prints the table that stands below it."""
    text = (REPO / "docs" / "dataflow.md").read_text()
    command = re.search(r"^python dataflow_templates/costs\.py ([^\\\n]*(?:\\\n[^\\\n]*)*)", text, re.MULTILINE)[1]
    arguments = command.replace("\\\n", " ").split()
    script = TEMPLATES / "costs.py"
    printed = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") > 10
    assert printed in text


@pytest.mark.parametrize("job", JOBS)
def test_the_docs_launch_every_job_with_parameters_that_it_has(job):
    text = (REPO / "docs" / "dataflow.md").read_text().replace("\\\n", " ")
    launched = re.search(rf"dataflow\.sh launch {job} (.*)", text)[1]
    given = dict(pair.split("=", 1) for pair in shlex.split(launched))
    known = {parameter["name"]: parameter for parameter in metadata(job)["parameters"]}
    assert {name for name, parameter in known.items() if not parameter.get("isOptional")} <= set(given)
    for name, value in given.items():
        assert all(re.fullmatch(regex, value) for regex in known[name].get("regexes", ())), name


def test_the_docs_name_beams_options_and_the_dags_parameters():
    """The table of docs/dataflow.md that says what is called how."""
    text = (REPO / "docs" / "dataflow.md").read_text()
    rows = re.findall(r"^\| [a-z ]+ \| `(--[a-z-]+)` \| `([a-z_]+)` \| `(--[a-z_]+)` \|$", text, re.MULTILINE)
    assert len(rows) == 10
    beam = argparse.ArgumentParser()
    for options in (WorkerOptions, GoogleCloudOptions):
        options._add_argparse_args(beam)
    usage = (TEMPLATES / "dataflow.sh").read_text()
    dag = (REPO / "dags" / "vidpress_daily_dataflow.py").read_text()
    for flag, parameter, option in rows:
        assert flag in usage
        assert f'": "{parameter}",\n' in dag
        assert f'        "{parameter}": ' in dag
        assert option in beam._option_string_actions


@pytest.mark.parametrize("path", sorted((TEMPLATES / "alerts").glob("*.json")), ids=lambda path: path.stem)
def test_alerts_watch_what_jobs_are_called_and_count(path):
    policy = json.loads(path.read_text())
    ((kind, condition),) = (item for item in policy["conditions"][0].items() if item[0] != "displayName")
    text = condition["filter"]
    prefix = re.search(r'job_name (?:= starts_with\(|=~ )"\^?([a-z-]+)"', text)[1]
    for job in JOBS:
        assert f"{prefix}{job}".startswith("vidpress-")
    assert f'"{prefix}$job-' in (TEMPLATES / "dataflow.sh").read_text()
    assert f'"jobName": "{prefix}encode"' in (REPO / "dags" / "vidpress_daily_dataflow.py").read_text()
    if kind == "conditionThreshold":
        assert f'metric.labels.metric_name = "{metrics.DEAD_LETTERS.metric_name.name}"' in text
    else:
        # Cloud Monitoring takes no policy that watches logs without it.
        assert policy["alertStrategy"]["notificationRateLimit"]
    assert f"dataflow_templates/alerts/{path.name}" in (REPO / "docs" / "dataflow.md").read_text().replace(
        "$alert", path.stem
    )


def test_the_docs_name_counters_that_jobs_have():
    text = (REPO / "docs" / "dataflow.md").read_text()
    named = re.search(r'metric_name=~"([a-z|-]+)"', text)[1].split("|")
    assert set(named) <= {value.metric_name.name for value in vars(metrics).values() if hasattr(value, "metric_name")}
