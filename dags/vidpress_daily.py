"""Encode what is new since the last run, and verify the data set.

**encode** runs `vidpress encode --append`: the first run makes the data set, each later one adds the videos of the
input files that came since, as a generation with a manifest of its own. Nothing that is there changes, and a run
without new files does nothing.

**verify** runs `vidpress verify`: every file is held against the manifest, and a sample of the codes decoded. Its
log has a line for each finding.

**Retries and repeated runs are safe**: a run that dies leaves no manifest, and the next one reads the same files
again. Which files are new is decided by the manifest, not by the date of the run, so that a missed day needs no
catching up.

The workers of Airflow need a Python that has vidpress; name it in the environment variable `VIDPRESS_PYTHON`
(`python3` without). Set the parameters' defaults in this file, or give them when triggering a run.
"""

import datetime
import os

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

PYTHON = os.environ.get("VIDPRESS_PYTHON", "python3")

with DAG(
    dag_id="vidpress_daily",
    description="Encode new video features with vidpress, on the worker itself or on Flink, and verify them",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=5), "retry_exponential_backoff": True},
    # So that numbers and the Beam options come as what they are, not as text.
    render_template_as_native_obj=True,
    tags=["vidpress"],
    params={
        "input": Param(
            ["/data/yt8m/*.tfrecord"],
            type="array",
            items={"type": "string", "minLength": 1},
            minItems=1,
            description="TFRecord files or globs, local or gs://. What the data set was encoded from is left out.",
        ),
        "model": Param(
            "/data/model.safetensors", type="string", minLength=1, description="The frozen model, a path or gs:// URI."
        ),
        "output": Param(
            "/data/compact", type="string", minLength=1, description="The data set's folder, a path or gs:// URI."
        ),
        "max_bad_fraction": Param(
            0.01, type="number", minimum=0, maximum=1, description="Share of bad records above which the job fails."
        ),
        "runner": Param(
            "FnApiRunner",
            type="string",
            examples=["FnApiRunner", "FlinkRunner", "PortableRunner"],
            description="Beam's runner. FnApiRunner runs in the Airflow worker.",
        ),
        "beam_options": Param(
            {},
            type="object",
            description='Further options for Beam, such as {"direct_num_workers": 2, "direct_running_mode": '
            '"multi_processing"} or {"flink_master": "jobmanager:8081", "environment_type": "EXTERNAL"}.',
        ),
    },
) as dag:
    encode = BeamRunPythonPipelineOperator(
        task_id="encode",
        doc_md="Adds the videos of new files. The log ends with what was added, or with the reason why nothing was.",
        py_interpreter=PYTHON,
        py_options=["-m"],
        py_file="vidpress.pipeline.encode",
        runner="{{ params.runner }}",
        default_pipeline_options="{{ params.beam_options }}",
        pipeline_options={
            "append": True,
            "input": "{{ params.input }}",
            "model": "{{ params.model }}",
            "output": "{{ params.output }}",
            "max_bad_fraction": "{{ params.max_bad_fraction }}",
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
