"""The image and the launch of the Flex Templates, with no network and no Docker engine.

The Dockerfile's own steps build the image's environment in a scratch root; in it, the launcher's program writes the job
as it would for Dataflow, against an emulator of Cloud Storage; and the graph that it would submit runs on FnApiRunner.
"""

import dataclasses
import hashlib
import http.server
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types

import cloud_storage
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPO, frame_level, video_level, write_records
from test_dataflow_templates import JOBS, TEMPLATES, dataflow, metadata, service_message

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.warm_up import numba_variables

DOCKERFILE = TEMPLATES / "Dockerfile"
START = TEMPLATES / "start.sh"
IMAGE = "region-docker.pkg.dev/project/repository/vidpress-encode:0123abc"


@pytest.fixture(scope="session")
def tools() -> pathlib.Path:
    """The programs of the venv that VIDPRESS_EMULATORS names."""
    folder = os.environ.get("VIDPRESS_EMULATORS")
    if folder is None:
        pytest.skip("needs the linters and emulators: `make test-image` sets them up (VIDPRESS_EMULATORS)")
    return pathlib.Path(folder) / "bin"


def script(name: str) -> types.ModuleType:
    module_spec = importlib.util.spec_from_file_location(name, TEMPLATES / f"{name}.py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def container_spec(job: str, image: str = IMAGE) -> dict:
    return script("container_spec").container_spec(job, image)


@dataclasses.dataclass(frozen=True)
class Step:
    """An instruction of the Dockerfile: of which stage, and after which user."""

    stage: str
    user: str | None
    name: str
    text: str


def steps() -> list[Step]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found, stage, user = [], "", None
    for line in text.splitlines():
        if not line.strip():
            continue
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            stage, user = rest.split(" AS ")[1], None
        elif name == "USER":
            user = rest
        found.append(Step(stage, user, name, " ".join(rest.split())))
    return found


@pytest.fixture(scope="session")
def image(tools) -> pathlib.Path:
    """The root of an image whose stage `installed` was made here, by the steps that the Dockerfile gives its user."""
    wheels = sorted((REPO / "build" / "wheel").glob("vidpress-*.whl"))
    if not wheels:
        pytest.skip("needs vidpress's wheel: `make wheel` builds it")
    made_of = [DOCKERFILE, START, REPO / "requirements-dataflow.lock", *wheels]
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()
    root = REPO / "build" / "image"
    if (root / "stamp").exists() and (root / "stamp").read_text() == stamp:
        return root
    shutil.rmtree(root, ignore_errors=True)
    (root / "opt").mkdir(parents=True)
    work_dir = root / "src"
    work_dir.mkdir()
    ran = 0
    for step in steps():
        if step.stage != "installed" or step.user is None:
            continue
        if step.name == "COPY":
            pattern, target = step.text.split()
            assert target == "."
            for path in REPO.glob(pattern):
                shutil.copy(path, work_dir)
        elif step.name == "RUN":
            python = os.environ.get("VIDPRESS_IMAGE_PYTHON") or sys.executable
            command = step.text.replace("python -m venv", f"{python} -m venv").replace(
                "/opt/vidpress", f"{root}/opt/vidpress"
            )
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            result = subprocess.run(
                ["sh", "-ec", command], cwd=work_dir, env=environment, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, result.stderr
            ran += 1
    assert ran == 3
    (root / "stamp").write_text(stamp)
    return root


def run_in_image(image: pathlib.Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the image's Python as its entry point does, in its own folder, without this checkout's modules."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        ["sh", START, image / "opt/vidpress/bin/python", *arguments],
        cwd=image,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_dockerfile_has_no_lint(tools):
    subprocess.run([tools / "hadolint", "--failure-threshold", "style", DOCKERFILE], check=True)


def test_scripts_have_no_lint(tools):
    subprocess.run([tools / "shellcheck", TEMPLATES / "dataflow.sh", START], check=True)


def test_dockerfile_takes_what_is_there():
    """Its sources exist and pass the ignore file, its Beam is the lock's, and only the base's own part runs as root."""
    allowed = re.findall(r"^!(.*)$", (REPO / ".dockerignore").read_text(), re.MULTILINE)
    for step in steps():
        if step.name == "COPY" and not step.text.startswith("--from="):
            source = step.text.split()[0]
            assert any(pathlib.PurePath(source).match(pattern) for pattern in allowed), source
            assert "*" in source or (REPO / source).exists(), source
    locked = re.search(r"^apache-beam==(\S+)", (REPO / "requirements-dataflow.lock").read_text(), re.MULTILINE)[1]
    assert f"/beam_python3.11_sdk:{locked}" in DOCKERFILE.read_text()
    assert all("pip" not in step.text for step in steps() if step.name == "RUN" and step.user is None)
    assert not [step for step in steps() if step.name == "RUN" and step.stage in ("job", *JOBS)]
    entry_points = {step.stage: step.text for step in steps() if "FLEX_TEMPLATE_PYTHON_PY_FILE" in step.text}
    (start,) = (json.loads(step.text) for step in steps() if step.name == "ENTRYPOINT")
    assert start == ["/bin/sh", "/template/start.sh", "/opt/apache/beam/boot"]
    assert any(step.text == "dataflow_templates/start.sh /template/start.sh" for step in steps() if step.stage == "job")
    for job in JOBS:
        assert entry_points[job] == f"FLEX_TEMPLATE_PYTHON_PY_FILE=/template/{job}.py"
        assert any(step.text == f"dataflow_templates/{job}/main.py /template/{job}.py" for step in steps())


def test_cloud_build_makes_what_the_templates_name():
    build = yaml.safe_load((TEMPLATES / "cloudbuild.yaml").read_text())
    used = set(re.findall(r"(?<!\$)\$(_[A-Z]+)", json.dumps(build["steps"])))
    assert used == set(build["substitutions"])
    script = (TEMPLATES / "dataflow.sh").read_text()
    assert used == set(re.findall(r"(_[A-Z]+)=", script))
    for job in JOBS:
        (step,) = (step for step in build["steps"] if step["id"] == job)
        assert step["args"][0] == "build"
        assert step["args"][step["args"].index("--target") + 1] == job
        assert (REPO / step["args"][step["args"].index("--file") + 1]) == DOCKERFILE
        assert step["args"][step["args"].index("--tag") + 1] == f"$_REPOSITORY/vidpress-{job}:$_TAG"


def test_image_has_what_a_worker_needs(image):
    result = run_in_image(
        image,
        "-c",
        "import importlib.util as u, sys\n"
        "import vidpress.pipeline.encode as e, vidpress.pipeline.decode, apache_beam.io.gcp.gcsio\n"
        "assert u.find_spec('tensorflow') is None\n"
        "print(e.__file__)",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith(f"{image}/opt/vidpress/lib")


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry of images that gives manifests to who has a token, and tokens to everyone, as Docker Hub does."""

    manifests = {
        "/v2/library/python/manifests/3.11-slim-bookworm": b'{"schemaVersion": 2, "manifests": []}',
        "/v2/some-project/launcher/manifests/20260720_RC00": b'{"schemaVersion": 2, "layers": []}',
    }

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/token":
            self.answer(200, json.dumps({"token": query}).encode())
        elif self.headers.get("Authorization") != "Bearer service=hub&scope=repository%3Apull":
            realm = f"http://{self.headers['Host']}/token"
            challenge = f'Bearer realm="{realm}",service="hub",scope="repository:pull"'
            self.answer(401, b"", ("WWW-Authenticate", challenge))
        elif path in self.manifests and "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]:
            self.answer(200, self.manifests[path])
        else:
            self.answer(404, b"")

    def answer(self, status, body, *headers):
        self.send_response(status)
        for header in (("Content-Length", str(len(body))), *headers):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def pins(monkeypatch):
    module = script("pin_images")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(module, "HOSTS", {"docker.io": url, "gcr.io": url})
        yield module
        server.shutdown()


def digest(path: str) -> str:
    return f"@sha256:{hashlib.sha256(Registry.manifests[path]).hexdigest()}"


def test_pinning_writes_what_the_tags_name(pins, monkeypatch, tmp_path, capsys):
    python, launcher = map(digest, Registry.manifests)
    old = f"@sha256:{64 * '0'}"
    dockerfile = """# comment with gcr.io/some-project/launcher:20260720_RC00
FROM docker.io/library/python:3.11-slim-bookworm{python} AS base
FROM gcr.io/some-project/launcher:20260720_RC00{launcher} AS launcher
FROM base AS job
"""
    build = """steps:
  - id: a
    name: &launcher gcr.io/some-project/launcher:20260720_RC00{launcher}
  - name: *launcher
  - name: docker.io/library/python:3.11-slim-bookworm{python}
"""
    for name, text in (("Dockerfile", dockerfile), ("cloudbuild.yaml", build)):
        (tmp_path / name).write_text(text.format(python="", launcher=old))
    files = [str(tmp_path / name) for name in ("Dockerfile", "cloudbuild.yaml")]
    monkeypatch.setattr(sys, "argv", ["pin_images.py", "--check", *files])
    with pytest.raises(SystemExit, match=r"python:3\.11-slim-bookworm is not pinned by a digest"):
        pins.main()
    monkeypatch.setattr(sys, "argv", ["pin_images.py", *files])
    pins.main()
    for name, text in (("Dockerfile", dockerfile), ("cloudbuild.yaml", build)):
        assert (tmp_path / name).read_text() == text.format(python=python, launcher=launcher)
        assert f"Pinned the images of {tmp_path / name}." in capsys.readouterr().out or name != "Dockerfile"
    monkeypatch.setattr(sys, "argv", ["pin_images.py", "--check", *files])
    pins.main()


def test_a_tag_that_is_not_there_changes_nothing(pins, monkeypatch, tmp_path):
    file = tmp_path / "Dockerfile"
    text = "FROM docker.io/library/python:3.11-slim-bookworm AS a\nFROM gcr.io/some-project/launcher:new AS b\n"
    file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["pin_images.py", str(file)])
    with pytest.raises(
        SystemExit, match=r"gcr.io/some-project/launcher:new cannot be looked up at .*404.*: check its name"
    ):
        pins.main()
    assert file.read_text() == text


def test_every_image_that_is_named_can_be_pinned():
    """So that `pin` overlooks none."""
    pins = script("pin_images")
    stages = {step.stage for step in steps()}
    named = [step.text.split()[0] for step in steps() if step.name == "FROM" and step.text.split()[0] not in stages]
    named += [step["name"] for step in yaml.safe_load((TEMPLATES / "cloudbuild.yaml").read_text())["steps"]]
    found = {found[0].split()[-1] for path in pins.FILES for found in pins.IMAGE.finditer(path.read_text())}
    assert len(found) == 5
    assert set(named) == found


BASE_FLAGS = "fpu avx avx2 bmi1 bmi2 cx16 f16c fma abm movbe xsave"
WIDE_FLAGS = f"{BASE_FLAGS} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (BASE_FLAGS, "x86-64-v3"),
        (WIDE_FLAGS, "x86-64-v4"),
        (f"{WIDE_FLAGS} amx_bf16 amx_tile amx_int8", "x86-64-v4+amx-tile+amx-bf16"),
        (f"{WIDE_FLAGS} amx_tile", "x86-64-v4"),
        (f"{BASE_FLAGS} avx512f", "x86-64-v3"),
        (WIDE_FLAGS.replace("fma ", ""), None),
        ("fpu avx", None),
    ],
)
def test_a_worker_says_which_machine_code_it_can_run(tmp_path, flags, kind):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: x\n\nflags\t\t: none\n")
    start = tmp_path / "start.sh"
    start.write_text(START.read_text().replace("/proc/cpuinfo", str(tmp_path / "cpuinfo")))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    command = ["sh", start, "sh", "-c", 'env | grep NUMBA_CPU; echo "$1"', "sh", "two words"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *variables, argument = result.stdout.splitlines()
    assert argument == "two words"
    assert dict(line.split("=", 1) for line in variables) == ({} if kind is None else numba_variables(kind))
    if kind is not None:
        assert kind in subprocess.run(["sh", START], capture_output=True, text=True, check=True).stdout.split()


KINDS = """
import glob, json, os, pickle
import vidpress.model.warm_up as warm_up
found = {}
for path in glob.glob(os.path.join(os.path.dirname(warm_up.__file__), "**", "__pycache__", "*.nbi"), recursive=True):
    with open(path, "rb") as file:
        pickle.load(file)
        _, compiled = pickle.loads(file.read())
    for _, (_, name, features), _ in compiled:
        found.setdefault(name + features.replace(",", ""), set()).add(os.path.basename(path).split("-")[0])
print(json.dumps({kind: sorted(loops) for kind, loops in found.items()}))
"""


def test_the_image_holds_machine_code_for_each_kind_of_processors(image):
    result = run_in_image(image, "-c", KINDS)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    narrow, wide, units = subprocess.run(["sh", START], capture_output=True, text=True, check=True).stdout.split()
    assert len(found[narrow]) > 10
    assert found[narrow] == found[wide]
    assert {"matrix_units._multiply", "matrix_units._split_kernel"} <= set(found[units])
    assert set(found[wide]) <= set(found[units])


FIRST_BUNDLE = """
import sys
from vidpress.model.numba_internals import Loop
from vidpress.pipeline import decode, encode
records, model, output, features = sys.argv[1:]
encode.main(["--input", records, "--model", model, "--output", output])
decode.main(["--input", output, "--output", features])
loops = {
    f"{name}.{key}": value for name, module in list(sys.modules.items()) if name.startswith("vidpress.")
    for key, value in vars(module).items() if isinstance(value, Loop)
}
compiled = {name: dict(loop.stats.cache_misses) for name, loop in loops.items() if loop.stats.cache_misses}
assert not compiled, compiled
assert sum(bool(loop.stats.cache_hits) for loop in loops.values()) > 5
"""


def test_a_workers_first_bundle_compiles_nothing(image, model_path, tmp_path):
    records = write_records(tmp_path / "a.tfrecord", [frame_level(index) for index in range(300)])
    paths = [records, model_path, str(tmp_path / "compact"), str(tmp_path / "features")]
    result = run_in_image(image, "-c", FIRST_BUNDLE, *paths)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("job", JOBS)
def test_template_is_the_services_own_type(job):
    spec = container_spec(job)
    message = service_message(dataflow.ContainerSpec, spec)
    assert message.image == message.default_environment.sdk_container_image == IMAGE
    assert message.sdk_info.language == dataflow.SDKInfo.Language.PYTHON
    printed = subprocess.run(
        [sys.executable, TEMPLATES / "container_spec.py", job, IMAGE], capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == spec


class Gcloud:
    """A program named gcloud that notes its arguments: there is no service here to call."""

    def __init__(self, folder: pathlib.Path):
        self._notes = folder / "notes"
        program = folder / "gcloud"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {self._notes}\n')
        program.chmod(0o755)
        (folder / "make").write_text("#!/bin/sh\n")
        (folder / "make").chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PROJECT": "project",
            "REGION": "us-central1",
            "TEMPLATES": "gs://bucket/templates/",
            "REPOSITORY": "region-docker.pkg.dev/project/repository",
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command = ["bash", str(TEMPLATES / "dataflow.sh"), *arguments]
        env = {**self.environment, **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    @property
    def arguments(self) -> list[str]:
        return self._notes.read_text().splitlines()


PARAMETERS = {
    "encode": {
        "input": "gs://bucket/input/{0,1},*.tfrecord",
        "model": "gs://bucket/model.safetensors",
        "output": "gs://bucket/compact",
        "num_shards": "2",
    },
    "decode": {"input": "gs://bucket/compact", "output": "gs://bucket/features", "format": "parquet"},
    "compact": {"data_set": "gs://bucket/generations", "num_shards": "1"},
}


# By the names that `gcloud dataflow flex-template run` has for them.
FLAGS = {
    "num-workers": "10",
    "worker-machine-type": "c3-standard-4",
    "worker-zone": "us-central1-a",
    "network": "video",
    "subnetwork": "regions/us-central1/subnetworks/video",
    "dataflow-kms-key": "projects/p/locations/us-central1/keyRings/r/cryptoKeys/k",
    "service-account-email": "worker@p.iam.gserviceaccount.com",
    "additional-user-labels": "team=video,cost-center=42",
}


@pytest.mark.parametrize("job", JOBS)
def test_launch_request_validates(job, tmp_path):
    """What `dataflow.sh launch` asks gcloud for is a request that the service knows, with parameters that it takes."""
    gcloud = Gcloud(tmp_path)
    result = gcloud.run(
        "launch",
        job,
        *(f"{name}={value}" for name, value in PARAMETERS[job].items()),
        *(f"--{flag}={value}" for flag, value in FLAGS.items()),
        "--disable-public-ips",
        LAUNCH_FLAGS="--max-workers=100 --worker-machine-type=n2-standard-8",
    )
    assert result.returncode == 0, result.stderr
    assert gcloud.arguments[:3] == ["dataflow", "flex-template", "run"]
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in gcloud.arguments[4:] if "=" in flag)
    parameters = dict(pair.split("=", 1) for pair in flags["parameters"].removeprefix("^|^").split("|"))
    assert parameters == PARAMETERS[job]
    assert flags["template-file-gcs-location"] == f"gs://bucket/templates/{job}.json"
    assert "--disable-public-ips" in gcloud.arguments
    known = {parameter["name"]: parameter for parameter in metadata(job)["parameters"]}
    assert {name for name, parameter in known.items() if not parameter.get("isOptional")} <= set(parameters)
    for name, value in parameters.items():
        assert all(re.fullmatch(regex, value) for regex in known[name].get("regexes", ()))
    request = {
        "launchParameter": {
            "jobName": gcloud.arguments[3],
            "containerSpec": container_spec(job),
            "parameters": parameters,
            "environment": {
                "maxWorkers": int(flags["max-workers"]),
                "numWorkers": int(flags["num-workers"]),
                "machineType": flags["worker-machine-type"],
                "workerZone": flags["worker-zone"],
                "network": flags["network"],
                "subnetwork": flags["subnetwork"],
                "kmsKeyName": flags["dataflow-kms-key"],
                "serviceAccountEmail": flags["service-account-email"],
                "additionalUserLabels": dict(pair.split("=") for pair in flags["additional-user-labels"].split(",")),
                "stagingLocation": flags["staging-location"],
                "tempLocation": flags["temp-location"],
                "ipConfiguration": "WORKER_IP_PRIVATE",
            },
        },
        "validateOnly": True,
    }
    assert flags["max-workers"] == "100"
    assert {flag: flags[flag] for flag in FLAGS} == FLAGS  # also where LAUNCH_FLAGS has another value
    message = service_message(dataflow.LaunchFlexTemplateRequest, request)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", message.launch_parameter.job_name)


def test_build_submits_the_build_file_once_all_images_are_pinned(tmp_path):
    gcloud = Gcloud(tmp_path)
    pins = script("pin_images")
    unpinned = [
        found[0] for path in pins.FILES for found in pins.IMAGE.finditer(path.read_text()) if not found["digest"]
    ]
    if unpinned:
        result = gcloud.run("build")
        assert result.returncode == 1
        assert re.fullmatch(
            r"pin_images.py: error: \S+ is not pinned by a digest: run `dataflow_templates/dataflow.sh pin`, .*\n",
            result.stderr,
        )
    # Once they are, or seem so.
    (tmp_path / "python3").write_text("#!/bin/sh\n")
    (tmp_path / "python3").chmod(0o755)
    result = gcloud.run("build", TAG="v1")
    assert result.returncode == 0, result.stderr
    assert gcloud.arguments[:3] == ["builds", "submit", "."]
    assert "--config=dataflow_templates/cloudbuild.yaml" in gcloud.arguments
    expected = "_REPOSITORY=region-docker.pkg.dev/project/repository,_TEMPLATES=gs://bucket/templates,_TAG=v1"
    assert f"--substitutions={expected}" in gcloud.arguments


@pytest.mark.parametrize(
    "arguments",
    [[], ["launch"], ["launch", "train"], ["launch", "encode", "x"], ["build", "x"], ["pin", "x"], ["lunch", "encode"]],
)
def test_script_says_how_it_is_used(arguments, tmp_path):
    result = Gcloud(tmp_path).run(*arguments)
    assert result.returncode == 2
    assert "usage: dataflow.sh build" in result.stderr


# The submitted graph, with the workers' image exchanged for the process that runs this.
REPLAY = """
import sys
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
graph = beam_runner_api_pb2.Pipeline()
with FileSystems.open(sys.argv[1]) as file:
    graph.ParseFromString(file.read())
for environment in graph.components.environments.values():
    assert environment.urn == 'beam:env:docker:v1', environment
    environment.urn = python_urns.EMBEDDED_PYTHON
    environment.ClearField('payload')
    environment.ClearField('dependencies')
FnApiRunner().run_via_runner_api(graph, PipelineOptions([])).wait_until_finish()
"""


def launcher_arguments(job: str, parameters: dict[str, str], launch: str) -> list[str]:
    """What Dataflow's launcher adds to the parameters, and what keeps this run off the network."""
    spec = container_spec(job)
    environment = spec["defaultEnvironment"]
    return [
        *(f"--{name}={value}" for name, value in parameters.items()),
        "--runner=DataflowRunner",
        "--project=project",
        "--region=us-central1",
        f"--job_name=vidpress-{job}",
        f"--template_location={launch}/job_object",
        f"--staging_location={launch}/staging",
        f"--temp_location={launch}/temp",
        f"--sdk_container_image={environment['sdkContainerImage']}",
        f"--machine_type={environment['machineType']}",
        f"--disk_size_gb={environment['diskSizeGb']}",
        f"--max_num_workers={environment['maxWorkers']}",
        *(f"--experiments={experiment}" for experiment in environment["additionalExperiments"]),
        "--no_auth",
        "--dataflow_endpoint=http://localhost:1",
    ]


@pytest.fixture(scope="session")
def cloud(tools, tmp_path_factory):
    """An emulator of Cloud Storage with a bucket, and the environment that leads there."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    with cloud_storage.fake_gcs_server() as emulator:
        # What the emulator lacks, the proxy before it adds; here it makes nothing fail.
        proxy = cloud_storage.FaultProxy(emulator)
        url = proxy.url
        client = storage.Client("project", AnonymousCredentials(), client_options={"api_endpoint": url})
        client.create_bucket("bucket")
        user = tmp_path_factory.mktemp("credentials") / "user.json"
        fields = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
        user.write_text(json.dumps({**fields, "token": "t", "expiry": "2999-01-01T00:00:00Z"}))
        yield (
            client.bucket("bucket"),
            {
                "STORAGE_EMULATOR_HOST": url,
                "GOOGLE_CLOUD_PROJECT": "project",
                "GOOGLE_APPLICATION_CREDENTIALS": str(user),
            },
        )
        proxy.close()


def written_job(bucket, launch: str) -> tuple[dict, str]:
    """Return the job that was written to a folder, and where its graph is."""
    fields = json.loads(bucket.blob(f"{launch}/job_object").download_as_bytes())
    options = fields["environment"]["sdkPipelineOptions"]["options"]
    return fields, options["pipelineUrl"] if "pipelineUrl" in options else options["pipeline_url"]


def check_job(fields: dict, job: str) -> None:
    """See that a job is the service's own type and asks for the template's image and workers."""
    message = service_message(dataflow.Job, fields)
    environment = container_spec(job)["defaultEnvironment"]
    assert message.type_ == dataflow.JobType.JOB_TYPE_BATCH
    assert message.name == f"vidpress-{job}"
    (pool,) = message.environment.worker_pools
    assert {image.container_image for image in pool.sdk_harness_container_images} == {IMAGE}
    (written,) = fields["environment"]["workerPools"]
    assert not any(image.get("useSingleCorePerContainer") is False for image in written["sdkHarnessContainerImages"])
    assert pool.machine_type == environment["machineType"]
    assert pool.disk_size_gb == environment["diskSizeGb"]
    assert pool.autoscaling_settings.max_num_workers == environment["maxWorkers"]
    assert "use_runner_v2" in message.environment.experiments
    # Everything is in the image: nothing is left for pip to install when a worker starts.
    staged = [package.name for package in pool.packages]
    assert not [name for name in staged if not name.startswith(("pipeline", "submission_environment"))], staged


def test_submitted_graphs_give_the_same_data_set(image, cloud, model, tmp_path):
    """The launcher's whole way, on an emulator; then the graphs that it submits; against a local run in the image."""
    bucket, environment = cloud
    payloads = [frame_level(index) for index in range(60)] + [video_level(index) for index in range(60, 120)]
    payloads += [payloads[0], b"rubbish"]
    inputs = [write_records(tmp_path / f"{index}.tfrecord", payloads[index::2]) for index in range(2)]
    model.save(tmp_path / "model.safetensors")
    local = ["--model", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "compact"), "--num_shards", "2"]
    result = run_in_image(image, "-m", "vidpress.pipeline.encode", "--input", *inputs, *local)
    assert result.returncode == 0, result.stderr
    for path in (*inputs, tmp_path / "model.safetensors"):
        name = pathlib.Path(path).name
        bucket.blob(f"input/{name}" if name.endswith(".tfrecord") else name).upload_from_filename(str(path))

    parameters = {**PARAMETERS["encode"], "input": "gs://bucket/input/*.tfrecord"}
    arguments = launcher_arguments("encode", parameters, "gs://bucket/launches/encode")
    main = str(TEMPLATES / "encode" / "main.py")
    result = run_in_image(image, main, *arguments, **environment)
    assert result.returncode == 0, result.stderr
    assert "Wrote the job's graph to gs://bucket/launches/encode/job_object; nothing is encoded yet." in result.stdout
    job, graph = written_job(bucket, "launches/encode")
    check_job(job, "encode")
    assert not bucket.blob("compact/manifest.json").exists()
    result = run_in_image(image, "-c", REPLAY, graph, **environment)
    assert result.returncode == 0, result.stderr
    for path in (tmp_path / "compact").glob("shard-*"):
        assert bucket.blob(f"compact/{path.name}").download_as_bytes() == path.read_bytes()
    manifest = json.loads(bucket.blob("compact/manifest.json").download_as_bytes())
    expected = json.loads((tmp_path / "compact" / "manifest.json").read_text())
    (generation,), (expected_generation,) = manifest["generations"], expected["generations"]
    assert generation["shards"] == expected_generation["shards"]
    assert generation["counts"] == expected_generation["counts"]

    arguments = launcher_arguments("decode", PARAMETERS["decode"], "gs://bucket/launches/decode")
    result = run_in_image(image, str(TEMPLATES / "decode" / "main.py"), *arguments, **environment)
    assert result.returncode == 0, result.stderr
    job, graph = written_job(bucket, "launches/decode")
    check_job(job, "decode")
    result = run_in_image(image, "-c", REPLAY, graph, **environment)
    assert result.returncode == 0, result.stderr
    tables = [
        pq.read_table(io.BytesIO(blob.download_as_bytes())) for blob in bucket.list_blobs(prefix="features/features-")
    ]
    found = {row["id"]: row["z_hat"] for row in pa.concat_tables(tables).to_pylist()}
    wanted = {
        video_id: values.tolist()
        for ids, _, features in VideoDataset(tmp_path / "compact")
        for video_id, values in zip(ids, features, strict=True)
    }
    assert found == wanted

    golden = REPO / "tests" / "golden" / "data-set-v5"
    for path in golden.iterdir():
        bucket.blob(f"generations/{path.name}").upload_from_filename(str(path))
    arguments = launcher_arguments("compact", PARAMETERS["compact"], "gs://bucket/launches/compact")
    result = run_in_image(image, str(TEMPLATES / "compact" / "main.py"), *arguments, **environment)
    assert result.returncode == 0, result.stderr
    job, graph = written_job(bucket, "launches/compact")
    check_job(job, "compact")
    result = run_in_image(image, "-c", REPLAY, graph, **environment)
    assert result.returncode == 0, result.stderr
    manifest = json.loads(bucket.blob("generations/manifest-00005.json").download_as_bytes())
    (shard,) = manifest["generations"][-1]["shards"]
    assert shard["rows"] == Manifest.load(golden).counts.videos


def test_launcher_names_what_is_wrong(image, cloud):
    """The checks before work run in the launcher: its log says in one line what to do."""
    _, environment = cloud
    parameters = {**PARAMETERS["encode"], "input": "gs://bucket/nothing/*"}
    arguments = launcher_arguments("encode", parameters, "gs://bucket/launches/wrong")
    result = run_in_image(image, str(TEMPLATES / "encode" / "main.py"), *arguments, **environment)
    assert result.returncode == 1
    assert "vidpress encode: error: --input gs://bucket/nothing/* matches no file" in result.stderr
