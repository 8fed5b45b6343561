"""The DAGs under the real Airflow: they parse, run through, and fail as they should."""

import json
import pathlib
import subprocess
import urllib.parse

import googleapiclient
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.google.cloud.hooks.dataflow import DataflowHook
from airflow.sdk import DagRunState
from conftest import REPO
from googleapiclient.discovery import build
from googleapiclient.http import HttpMockSequence

MODEL = REPO / "tests" / "golden" / "model-v2.safetensors"
WRITE_VIDEOS = """
import sys
from vidpress.model.features import FeatureSpec
from vidpress.model.synthetic import make_videos
from vidpress.model.tfrecord import write_tfrecords
path, start, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "wb") as file:
    write_tfrecords(file, make_videos(number, spec=FeatureSpec.parse("rgb:24,audio:8"), frames=(2, 5), start=start))
"""


@pytest.fixture(scope="session")
def dag_bag():
    return DagBag(REPO / "dags")


@pytest.fixture(scope="session")
def dags(dag_bag):
    """The DAGs without retries: a run that fails need not be waited for."""
    for dag in dag_bag.dags.values():
        for task in dag.tasks:
            task.retries = 0
    return dag_bag.dags


class Warehouse:
    """A folder of input files, the data set, and the parameters that name them."""

    def __init__(self, folder: pathlib.Path, python: str):
        self.python = python
        self.input = folder / "input"
        self.input.mkdir()
        self.output = folder / "compact"
        self.params = {"input": [f"{self.input}/*.tfrecord"], "model": str(MODEL), "output": str(self.output)}

    def add(self, name: str, start: int, number: int) -> pathlib.Path:
        path = self.input / f"{name}.tfrecord"
        subprocess.run([self.python, "-c", WRITE_VIDEOS, str(path), str(start), str(number)], check=True)
        return path

    def videos(self) -> list[int]:
        """How many videos each generation holds."""
        manifests = sorted(self.output.glob("manifest*.json"))
        if not manifests:
            return []
        newest = json.loads(max(manifests, key=lambda path: len(path.read_text())).read_text())
        return [generation["counts"]["videos"] for generation in newest["generations"]]


@pytest.fixture
def warehouse(tmp_path, vidpress_python):
    return Warehouse(tmp_path, vidpress_python)


def states(run) -> dict[str, str]:
    return {instance.task_id: str(instance.state) for instance in run.get_task_instances()}


def logged(caplog, capfd) -> str:
    """What a run wrote to its log, which Airflow prints as well as passes on."""
    printed = capfd.readouterr()
    return printed.out + printed.err + caplog.text


def test_the_folder_parses(dag_bag):
    assert dag_bag.import_errors == {}
    assert set(dag_bag.dags) == {"vidpress_daily", "vidpress_daily_dataflow"}
    for dag in dag_bag.dags.values():
        assert [task.task_id for task in dag.topological_sort()] == ["encode", "verify"]
        assert (dag.catchup, dag.max_active_runs) == (False, 1)
        assert "Retries and repeated runs are safe" in dag.doc_md
        assert all(task.doc_md and task.retries >= 1 for task in dag.tasks)
        assert all(param.description for param in map(dag.params.get_param, dag.params))


def test_a_run_a_day_adds_what_is_new_and_verifies_it(dags, warehouse, caplog, capfd):
    dag = dags["vidpress_daily"]
    warehouse.add("day1", 0, 40)
    run = dag.test(run_conf=warehouse.params)
    assert run.state == DagRunState.SUCCESS
    assert states(run) == {"encode": "success", "verify": "success"}
    assert warehouse.videos() == [40]
    log = logged(caplog, capfd)
    assert "Encoded 40 videos" in log
    assert "is whole: 40 videos" in log

    warehouse.add("day2", 30, 30)
    options = {"beam_options": {"direct_num_workers": 2, "direct_running_mode": "multi_processing"}}
    assert dag.test(run_conf={**warehouse.params, **options}).state == DagRunState.SUCCESS
    assert warehouse.videos() == [40, 20]
    log = logged(caplog, capfd)
    assert "--direct_num_workers=2" in log
    assert "is whole: 60 videos" in log

    before = {path: path.read_bytes() for path in warehouse.output.iterdir()}
    assert dag.test(run_conf=warehouse.params).state == DagRunState.SUCCESS
    assert "Nothing new" in logged(caplog, capfd)
    assert {path: path.read_bytes() for path in warehouse.output.iterdir()} == before


def test_several_inputs(dags, warehouse):
    paths = [str(warehouse.add(f"part{index}", 10 * index, 10)) for index in range(3)]
    assert dags["vidpress_daily"].test(run_conf={**warehouse.params, "input": paths}).state == "success"
    assert warehouse.videos() == [30]


def test_a_job_that_fails_fails_its_task_with_the_jobs_message(dags, warehouse, caplog, capfd):
    path = warehouse.add("day1", 0, 40)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    dag = dags["vidpress_daily"]
    run = dag.test(run_conf=warehouse.params)
    assert run.state == DagRunState.FAILED
    assert states(run) == {"encode": "failed", "verify": "upstream_failed"}
    log = logged(caplog, capfd)
    assert "vidpress encode: error: 1 of 40 records are bad, more than --max_bad_fraction=0.01 allows" in log
    assert warehouse.videos() == []

    run = dag.test(run_conf={**warehouse.params, "max_bad_fraction": 0.1})
    assert states(run) == {"encode": "success", "verify": "success"}
    assert warehouse.videos() == [39]


def test_damage_fails_verify_with_its_findings(dags, warehouse, caplog, capfd):
    dag = dags["vidpress_daily"]
    warehouse.add("day1", 0, 40)
    assert dag.test(run_conf=warehouse.params).state == DagRunState.SUCCESS
    (shard,) = warehouse.output.glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1])
    capfd.readouterr()
    run = dag.test(run_conf=warehouse.params)
    assert states(run) == {"encode": "success", "verify": "failed"}
    assert f"{shard} has " in logged(caplog, capfd)


def test_parameters_are_checked(dags, warehouse):
    for wrong in ({"input": []}, {"max_bad_fraction": 2}, {"output": ""}):
        with pytest.raises(Exception, match="Invalid input for param"):
            dags["vidpress_daily"].test(run_conf={**warehouse.params, **wrong})


def check_message(message, schema: dict, schemas: dict) -> None:
    """Hold a message against one of the service's own types, as the client library ships them."""
    assert set(message) <= set(schema["properties"]), set(message) - set(schema["properties"])
    for key, value in message.items():
        kind = schema["properties"][key]
        if "$ref" in kind:
            check_message(value, schemas[kind["$ref"]], schemas)
        elif kind["type"] == "object":
            assert all(isinstance(text, str) for text in value.values())
        elif kind["type"] == "integer":
            int(value)
        else:
            assert isinstance(value, str), key


def test_what_is_asked_of_dataflow(dags, warehouse, monkeypatch, caplog, capfd):
    """Up to the network everything is real; the job's own work is done by the job's command."""
    job = {"id": "2026-1", "name": "vidpress-encode", "projectId": "p", "location": "europe-west1"}
    done = {**job, "currentState": "JOB_STATE_DONE", "type": "JOB_TYPE_BATCH"}
    ok = {"status": "200"}
    http = HttpMockSequence(
        [(ok, json.dumps({"job": {**job, "currentState": "JOB_STATE_QUEUED"}}))] + [(ok, json.dumps(done))] * 5
    )
    monkeypatch.setattr(DataflowHook, "get_conn", lambda self: build("dataflow", "v1b3", http=http))
    warehouse.add("day1", 0, 20)
    command = [warehouse.python, "-m", "vidpress.pipeline.encode", "--input", *warehouse.params["input"]]
    command += ["--model", str(MODEL), "--output", str(warehouse.output)]
    subprocess.run(command, check=True, capture_output=True)

    dag = dags["vidpress_daily_dataflow"]
    params = {
        "project": "p",
        "region": "europe-west1",
        "input": "gs://b/yt8m/*.tfrecord",
        "model": "gs://b/model.safetensors",
        "output": "gs://b/compact",
        "max_workers": 7,
    }
    # The data set is not in a bucket here.
    dag.get_task("verify").env["DATA_SET"] = str(warehouse.output)
    run = dag.test(run_conf=params)
    assert states(run) == {"encode": "success", "verify": "success"}
    assert "is whole: 20 videos" in logged(caplog, capfd)

    uri, method, body, _ = http.request_sequence[0]
    assert method == "POST"
    assert urllib.parse.urlsplit(uri).path == "/v1b3/projects/p/locations/europe-west1/flexTemplates:launch"
    launch = json.loads(body)
    name = launch["launchParameter"].pop("jobName")
    assert name.startswith("vidpress-encode-")
    assert launch == {
        "launchParameter": {
            "containerSpecGcsPath": "gs://my-bucket/templates/vidpress-encode.json",
            "parameters": {
                "append": "true",
                "input": "gs://b/yt8m/*.tfrecord",
                "model": "gs://b/model.safetensors",
                "output": "gs://b/compact",
                "max_bad_fraction": "0.01",
            },
            "environment": {
                "maxWorkers": "7",
                "tempLocation": "gs://my-bucket/tmp",
                "serviceAccountEmail": "",
                "additionalUserLabels": {"airflow-dag": "vidpress_daily_dataflow"},
            },
        }
    }
    documents = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((documents / "dataflow.v1b3.json").read_text())["schemas"]
    check_message(json.loads(body), schemas["LaunchFlexTemplateRequest"], schemas)


def test_a_dataflow_job_that_fails_fails_its_task(dags, monkeypatch):
    job = {"id": "2026-1", "name": "vidpress-encode", "projectId": "p", "location": "europe-west1"}
    failed = {**job, "currentState": "JOB_STATE_FAILED", "type": "JOB_TYPE_BATCH"}
    ok = {"status": "200"}
    http = HttpMockSequence([(ok, json.dumps({"job": job}))] + [(ok, json.dumps(failed))] * 5)
    monkeypatch.setattr(DataflowHook, "get_conn", lambda self: build("dataflow", "v1b3", http=http))
    dag = dags["vidpress_daily_dataflow"]
    assert states(dag.test()) == {"encode": "failed", "verify": "upstream_failed"}
    assert [method for _, method, _, _ in http.request_sequence][:2] == ["POST", "GET"]


def test_the_templates_parameters_exist(dags):
    metadata = json.loads((REPO / "dataflow_templates" / "encode" / "metadata.json").read_text())
    given = dags["vidpress_daily_dataflow"].get_task("encode").body["launchParameter"]["parameters"]
    known = {parameter["name"]: parameter for parameter in metadata["parameters"]}
    assert set(given) <= set(known)
    assert {name for name, parameter in known.items() if not parameter.get("isOptional")} <= set(given)
