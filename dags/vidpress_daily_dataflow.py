"""Encode what is new since the last run with a Dataflow Flex Template, and verify the data set.

**encode** launches the template `dataflow_templates/encode` with `append=true`: the first run makes the data set,
each later one adds the videos of the input files that came since, as a generation with a manifest of its own.
Nothing that is there changes. A run without new files starts a job that finds nothing to do.

**verify** runs `vidpress verify` on the Airflow worker: every file is held against the manifest, and a sample of
the codes decoded. Its log has a line for each finding.

**Retries and repeated runs are safe**: a job that dies leaves no manifest, and the next one reads the same files
again. If a job that Airflow lost sight of is still running when it is launched again, the first to finish wins, and
the other adds nothing. Which files are new is decided by the manifest, not by the date of the run, so that a missed
day needs no catching up.

Airflow needs the connection `google_cloud_default`, and its workers a Python that has vidpress, named in the
environment variable `VIDPRESS_PYTHON` (`python3` without). Set the parameters' defaults in this file, or give them
when triggering a run.
"""

import datetime
import os

from airflow.providers.google.cloud.operators.dataflow import DataflowStartFlexTemplateOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

PYTHON = os.environ.get("VIDPRESS_PYTHON", "python3")
GCS = "^gs://[^/]+/.+"


def _gcs(default: str, description: str) -> Param:
    return Param(default, type="string", pattern=GCS, description=description)


with DAG(
    dag_id="vidpress_daily_dataflow",
    description="Encode new video features with vidpress on Dataflow, and verify them",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=5), "retry_exponential_backoff": True},
    tags=["vidpress", "dataflow"],
    params={
        "project": Param("my-project", type="string", minLength=1, description="The Google Cloud project."),
        "region": Param("us-central1", type="string", minLength=1, description="Where the job runs: near the input."),
        "template": _gcs("gs://my-bucket/templates/vidpress-encode.json", "The template that was built."),
        "input": _gcs(
            "gs://my-bucket/yt8m/*.tfrecord",
            "TFRecord files, one glob. Files that the data set was encoded from are left out.",
        ),
        "model": _gcs("gs://my-bucket/model.safetensors", "The frozen model."),
        "output": _gcs("gs://my-bucket/compact", "The data set's folder."),
        "temp_location": _gcs("gs://my-bucket/tmp", "Where Dataflow keeps what it needs while the job runs."),
        "max_bad_fraction": Param(
            0.01, type="number", minimum=0, maximum=1, description="Share of bad records above which the job fails."
        ),
        "max_workers": Param(10, type="integer", minimum=1, description="The most workers that Dataflow starts."),
        "service_account": Param(
            "", type="string", description="The workers' service account; the project's default one if empty."
        ),
    },
) as dag:
    encode = DataflowStartFlexTemplateOperator(
        task_id="encode",
        doc_md="Adds the videos of new files. What went wrong with a job stands in its own log, which is linked here.",
        project_id="{{ params.project }}",
        location="{{ params.region }}",
        body={
            "launchParameter": {
                "jobName": "vidpress-encode",  # made unique when launched
                "containerSpecGcsPath": "{{ params.template }}",
                "parameters": {
                    "append": "true",
                    "input": "{{ params.input }}",
                    "model": "{{ params.model }}",
                    "output": "{{ params.output }}",
                    "max_bad_fraction": "{{ params.max_bad_fraction }}",
                },
                "environment": {
                    "maxWorkers": "{{ params.max_workers }}",
                    "tempLocation": "{{ params.temp_location }}",
                    "serviceAccountEmail": "{{ params.service_account }}",
                    "additionalUserLabels": {"airflow-dag": "vidpress_daily_dataflow"},
                },
            }
        },
    )
    verify = BashOperator(
        task_id="verify",
        doc_md="Checks the data set against its manifest. A finding is damage that no retry mends: see the log.",
        retries=1,
        bash_command='exec "$VIDPRESS_PYTHON" -m vidpress.pipeline.verify "$DATA_SET"',
        env={"VIDPRESS_PYTHON": PYTHON, "DATA_SET": "{{ params.output }}"},
        append_env=True,
    )
    encode >> verify
