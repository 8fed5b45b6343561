"""Models, inputs, outputs and dead letters on Cloud Storage, and what becomes of them when requests fail."""

import concurrent.futures
import io
import json
import pathlib
import re
import tempfile
import uuid

import cloud_storage
import hypothesis
import numpy as np
import protocol
import pytest
from conftest import frame_level, random_model, video_level, write_records
from hypothesis.stateful import run_state_machine_as_test

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.files import google_storage, input_files, storage
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.tfrecord import read_tfrecords, write_tfrecords
from vidpress.pipeline import decode, encode, inspect, train, verify
from vidpress.transforms.generations import generation_files

gcs = pytest.importorskip("google.cloud.storage")
pytest.importorskip("apache_beam.io.gcp.gcsio", reason="needs the extra vidpress[gcp]")

BUCKET = "bucket"
TOKEN = "a-token-of-the-tests"
RECORDS = (
    [frame_level(index) for index in range(120)] + [video_level(index) for index in range(120, 200)] + [b"rubbish"]
)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    """A user's credentials with a token that lasts: nobody is asked for another one."""
    path = tmp_path_factory.mktemp("credentials") / "user.json"
    fields = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
    path.write_text(json.dumps({**fields, "token": TOKEN, "expiry": "2999-01-01T00:00:00Z"}))
    return str(path)


@pytest.fixture
def environment(credentials, monkeypatch):
    """Points both clients, Beam's and ours, at an emulator; they try again after a tenth of a second."""
    from apache_beam.internal.gcp import auth
    from apache_beam.io.gcp import gcsio_retry
    from google.cloud.storage import retry

    for policy in (retry.DEFAULT_RETRY, gcsio_retry.DEFAULT_RETRY_WITH_THROTTLING_COUNTER):
        monkeypatch.setattr(policy, "_initial", 0.1)

    def point_at(url: str) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", credentials)
        monkeypatch.setattr(auth._Credentials, "_credentials_init", False)
        google_storage._client.cache_clear()

    yield point_at
    google_storage._client.cache_clear()


def proxied(emulator, environment):
    """Run the proxy before an emulator with an empty bucket."""
    with emulator() as url:
        proxy = cloud_storage.FaultProxy(url)
        environment(proxy.url)
        gcs.Client().create_bucket(BUCKET)
        proxy.reset()
        yield proxy
        proxy.close()


@pytest.fixture
def proxy(environment):
    yield from proxied(cloud_storage.fake_gcs_server, environment)


@pytest.fixture
def strict(environment):
    """As `proxy`, with preconditions enforced, but for uploads in more than one request."""
    yield from proxied(cloud_storage.fake_gcs_server, environment)


def names(prefix: str = "") -> set[str]:
    return {blob.name for blob in gcs.Client().list_blobs(BUCKET, prefix=prefix)}


def content(name: str) -> bytes:
    return gcs.Client().bucket(BUCKET).blob(name).download_as_bytes()


def upload_inputs() -> None:
    for index in range(2):
        file = io.BytesIO()
        write_tfrecords(file, RECORDS[index::2])
        gcs.Client().bucket(BUCKET).blob(f"input/{index}.tfrecord").upload_from_string(file.getvalue())


ENCODE = [
    *("--input", f"gs://{BUCKET}/input/*.tfrecord", "--model", f"gs://{BUCKET}/model.safetensors"),
    *("--output", f"gs://{BUCKET}/compact", "--num_shards", "2"),
]
# What a run that died leaves in a first generation.
LEFTOVER = "shard-00001-00007-of-00008-0123456789ab.parquet"
DECODE = ["--input", f"gs://{BUCKET}/compact", "--output", f"gs://{BUCKET}/features"]


@pytest.fixture(scope="module")
def expected(model_path, tmp_path_factory):
    """The files of the same jobs on local disk, by name; of the dead letters, without the input's path."""
    folder = tmp_path_factory.mktemp("local")
    for index in range(2):
        write_records(folder / f"{index}.tfrecord", RECORDS[index::2])
    output = folder / "compact"
    arguments = ["--input", f"{folder}/*.tfrecord", "--model", model_path, "--output", str(output), "--num_shards", "2"]
    encode.main(arguments)
    decode.main(["--input", str(output), "--output", str(folder / "features")])
    files = {f"compact/{path.name}": path.read_bytes() for path in output.glob("shard-*")}
    assert len(files) == 2
    records = [
        payload for path in (folder / "features").glob("features-*") for _, payload in read_tfrecords(path.open("rb"))
    ]
    return files, sorted(records), Manifest.load(output).counts


def until_done(main, arguments, capsys, tries: int = 4) -> int:
    """Run a job again until it succeeds, as a scheduler would; a failure must name its cause. Returns the failures."""
    for failures in range(tries):
        try:
            main(arguments)
            return failures
        except SystemExit:
            message = capsys.readouterr().err
        except Exception as error:
            message = repr(error)
        causes = ("429", "503", "onnection", "injected", "IncompleteRead")
        assert any(cause in message for cause in causes), message
    raise AssertionError(f"failed {tries} times: {message}")


def check_data_set(expected) -> None:
    files, _, counts = expected
    for name, data in files.items():
        assert content(name) == data
    manifest = Manifest.load(f"gs://{BUCKET}/compact")
    assert manifest.counts == counts
    assert (counts.records, counts.videos, counts.dead_letters) == (201, 200, 1)
    (letters,) = manifest.dead_letters
    letter = json.loads(content(f"compact/{letters.name}"))
    assert letter["file"] == f"gs://{BUCKET}/input/0.tfrecord"


def check_features(expected) -> None:
    found = []
    assert "features/_SUCCESS" in names("features/")
    for name in names("features/features-"):
        found += [payload for _, payload in read_tfrecords(io.BytesIO(content(name)))]
    assert sorted(found) == expected[1]


def features(path) -> dict[bytes, bytes]:
    return {
        video_id: values.tobytes()
        for ids, _, batch in VideoDataset(path, batch_size=64, shuffle=True)
        for video_id, values in zip(ids, batch, strict=True)
    }


@pytest.mark.parametrize("fault", [None, *cloud_storage.FAULTS])
def test_jobs_and_readers_get_through(fault, proxy, model, expected, capsys):
    """Every kind of call suffers; the output is byte for byte that of local disk, and nothing else is left there."""
    upload_inputs()
    proxy.reset(fault)
    assert model.save(f"gs://{BUCKET}/model.safetensors") == model.model_id
    failures = until_done(encode.main, ENCODE, capsys) + until_done(decode.main, DECODE, capsys)
    inspect.main([f"gs://{BUCKET}/compact"])
    seen = features(f"gs://{BUCKET}/compact")
    kinds = {"start upload", "upload in one", "upload part", "download", "metadata", "list", "delete"}
    assert set(proxy.seen) - {cloud_storage.IN_BACKGROUND} == kinds
    assert set(proxy.faulted) - {cloud_storage.IN_BACKGROUND} == (kinds if fault else set())
    assert f"Bearer {TOKEN}" in proxy.tokens
    print(f"{fault}: {failures} failed runs, of calls {dict(proxy.seen)} suffered {dict(proxy.faulted)}")
    proxy.reset()
    check_data_set(expected)
    check_features(expected)
    assert len(seen) == 200
    assert seen == features(f"gs://{BUCKET}/compact")
    assert not [name for name in names("compact/") if name.endswith(".tmp") or "write-test" in name]


@pytest.mark.parametrize("status", [403, 503])
@pytest.mark.parametrize(
    ("job", "kind"),
    [
        *(("encode", kind) for kind in ("download", "metadata", "list", "upload in one", "delete")),
        *(("decode", kind) for kind in ("start upload", "upload part")),
    ],
)
def test_what_goes_on_failing_fails_the_job_with_its_cause(
    status, job, kind, proxy, model, expected, monkeypatch, capsys
):
    """Refusals at once, outages when the client's patience ends; nothing is complete, and running again completes."""
    from apache_beam.io.gcp import gcsio_retry
    from google.cloud.storage import retry

    for policy in (retry.DEFAULT_RETRY, gcsio_retry.DEFAULT_RETRY_WITH_THROTTLING_COUNTER):
        for name in ("_timeout", "_deadline"):  # of uploads, the second counts
            monkeypatch.setattr(policy, name, 3)  # instead of two minutes
    upload_inputs()
    model.save(f"gs://{BUCKET}/model.safetensors")
    main, arguments, last = (encode.main, ENCODE, "compact/manifest.json")
    if job == "decode":
        encode.main(ENCODE)
        main, arguments, last = (decode.main, DECODE, "features/_SUCCESS")
    proxy.refused = {kind: status}
    with pytest.raises((Exception, SystemExit)) as failure:
        main(arguments)
    message = capsys.readouterr().err + repr(failure.value)
    assert str(status) in message or {403: "Forbidden", 503: "ServiceUnavailable"}[status] in message, message
    proxy.reset()
    assert last not in names()
    main(arguments)
    check_data_set(expected)
    if job == "decode":
        check_features(expected)


def test_what_is_no_part_of_the_manifest_is_not_read(proxy, model, expected, capsys):
    upload_inputs()
    model.save(f"gs://{BUCKET}/model.safetensors")
    encode.main(ENCODE)
    before = features(f"gs://{BUCKET}/compact")
    bucket = gcs.Client().bucket(BUCKET)
    bucket.blob(f"compact/{LEFTOVER}").upload_from_string(b"of a run that died")
    bucket.blob("compact/notes/manifest-00007.json").upload_from_string(b"somebody's")
    bucket.blob("compact2/manifest-00007.json").upload_from_string(b"of the folder beside")
    assert features(f"gs://{BUCKET}/compact") == before
    inspect.main([f"gs://{BUCKET}/compact"])
    from apache_beam import Pipeline
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.testing.util import assert_that, equal_to

    from vidpress.transforms.read_shards import ReadShards

    with Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        rows = pipeline | ReadShards(f"gs://{BUCKET}/compact") | "Ids" >> _ids()
        assert_that(rows, equal_to(list(before)))


def _ids():
    import apache_beam as beam

    return beam.FlatMap(lambda batch: batch["id"].to_pylist())


def test_a_store_that_ignores_preconditions_is_refused_before_any_work(environment, model, tmp_path, capsys):
    """Two runs at once could undo each other there."""
    write_records(tmp_path / "videos", [frame_level(0)])
    model.save(tmp_path / "model.safetensors")
    with cloud_storage.gcp_storage_emulator() as url:
        environment(url)
        gcs.Client().create_bucket(BUCKET)
        arguments = ["--input", str(tmp_path / "videos"), "--model", str(tmp_path / "model.safetensors")]
        with pytest.raises(SystemExit) as stop:
            encode.main([*arguments, "--output", f"gs://{BUCKET}/compact"])
        assert stop.value.code == 1
        assert "makes a file where there is one already, even if told not to" in capsys.readouterr().err
        assert not names()


def test_output_that_holds_a_data_set_is_refused(proxy, model, capsys):
    upload_inputs()
    model.save(f"gs://{BUCKET}/model.safetensors")
    encode.main(ENCODE)
    with pytest.raises(SystemExit):
        encode.main(ENCODE)
    assert f"--output gs://{BUCKET}/compact holds a data set already" in capsys.readouterr().err


def test_new_files_are_added_and_verified(proxy, model, expected, capsys):
    upload_inputs()
    model.save(f"gs://{BUCKET}/model.safetensors")
    encode.main(ENCODE)
    before = {name: content(name) for name in names("compact/")}
    encode.main([*ENCODE, "--append"])
    assert "Nothing new" in capsys.readouterr().out
    bucket = gcs.Client().bucket(BUCKET)
    with tempfile.TemporaryDirectory() as folder:
        path = write_records(pathlib.Path(folder) / "new.tfrecord", list(map(video_level, range(1000, 1007))))
        bucket.blob("input/new.tfrecord").upload_from_filename(path)
    encode.main([*ENCODE, "--append"])
    after = {name: content(name) for name in names("compact/")}
    assert before.items() < after.items()
    assert Manifest.load(f"gs://{BUCKET}/compact").counts.videos == 207
    assert len(features(f"gs://{BUCKET}/compact")) == 207
    verify.main([f"gs://{BUCKET}/compact"])
    assert "is whole: 207 videos" in capsys.readouterr().out
    shard = next(name for name in after if name.startswith("compact/shard-00002"))
    bucket.blob(shard).upload_from_string(after[shard][:-1] + bytes([after[shard][-1] ^ 1]))
    with pytest.raises(SystemExit):
        verify.main([f"gs://{BUCKET}/compact"])
    assert shard.removeprefix("compact/") in capsys.readouterr().out


def test_leftovers_of_a_run_that_died_are_removed_when_they_are_old(proxy, model, expected, monkeypatch):
    upload_inputs()
    model.save(f"gs://{BUCKET}/model.safetensors")
    bucket = gcs.Client().bucket(BUCKET)
    bucket.blob(f"compact/{LEFTOVER}").upload_from_string(b"of a run that died")
    bucket.blob("compact/notes.txt").upload_from_string(b"somebody's")
    encode.main(ENCODE)
    check_data_set(expected)
    assert {"compact/notes.txt", f"compact/{LEFTOVER}"} <= names("compact/")
    monkeypatch.setattr(generation_files, "LEFTOVER_SECONDS", -60)
    bucket.blob("input/new.tfrecord").upload_from_string(b"")
    encode.main([*ENCODE, "--append"])
    assert "compact/notes.txt" in names("compact/")
    assert f"compact/{LEFTOVER}" not in names("compact/")


def big_model() -> FrozenModel:
    """A model that is uploaded in more than one request."""
    from vidpress.model.features import FeatureSpec

    model = random_model(FeatureSpec(), hidden=(2000,))
    assert len(model.to_bytes()) > 8 * 2**20
    return model


@pytest.mark.parametrize("size", ["small", "big"])
def test_a_published_model_is_never_replaced(size, strict, model):
    model = model if size == "small" else big_model()
    uri = f"gs://{BUCKET}/models/m.safetensors"
    assert model.save(uri) == model.model_id
    first = content("models/m.safetensors")
    assert strict.conditions == ["0"]
    # The emulator looks at the condition of uploads in one request only; the service at all.
    for other in (random_model(model.spec, hidden=(30,)), *([model] if size == "small" else [])):
        with pytest.raises(FileExistsError, match=f"{uri} exists already: choose another name or remove it"):
            other.save(uri)
    assert content("models/m.safetensors") == first == model.to_bytes()
    loaded = FrozenModel.load(uri, model_id=model.model_id)
    np.testing.assert_array_equal(loaded.tables.cdf, model.tables.cdf)


@pytest.mark.parametrize("size", ["small", "big"])
@pytest.mark.parametrize("fault", cloud_storage.FAULTS)
def test_publishing_gets_through(fault, size, strict, model):
    """An answer that is lost after the object was made is no sign that somebody else made it."""
    model = model if size == "small" else big_model()
    strict.reset(fault)
    model.save(f"gs://{BUCKET}/m.safetensors")
    assert "upload in one" in strict.faulted or {"start upload", "upload part"} <= set(strict.faulted)
    assert FrozenModel.load(f"gs://{BUCKET}/m.safetensors").model_id == model.model_id
    strict.reset(fault)
    with pytest.raises(FileExistsError):
        random_model(model.spec, hidden=(30,)).save(f"gs://{BUCKET}/m.safetensors")
    strict.reset()
    assert content("m.safetensors") == model.to_bytes()


def test_training_publishes_its_model(proxy, tmp_path, spec, capsys):
    """And refuses to start where there is one already."""
    pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")
    write_records(tmp_path / "videos.tfrecord", [*map(frame_level, range(60))])
    uri = f"gs://{BUCKET}/models/trained.safetensors"
    arguments = [
        *("--input", str(tmp_path / "videos.tfrecord"), "--output", uri, "--work_dir", str(tmp_path / "work")),
        *("--features", str(spec), "--classes", "7", "--hidden", "12", "--steps", "5", "--batch_size", "16"),
    ]
    train.main(arguments)
    model = FrozenModel.load(uri)
    assert model.num_dims == 12
    assert proxy.conditions[-1] == "0"
    assert names() == {"models/trained.safetensors"}
    with pytest.raises(SystemExit):
        train.main(arguments)
    assert f"--output {uri} exists already" in capsys.readouterr().err


def test_of_those_who_publish_at_once_one_wins(strict, spec):
    models = [random_model(spec, seed=seed) for seed in range(4)]

    def publish(model: FrozenModel) -> str | None:
        try:
            return model.save(f"gs://{BUCKET}/m.safetensors")
        except FileExistsError:
            return None

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        published = [model_id for model_id in pool.map(publish, models) if model_id]
    assert len(published) == 1
    assert FrozenModel.load(f"gs://{BUCKET}/m.safetensors").model_id == published[0]


def test_what_is_missing_or_refused_is_named(proxy, monkeypatch, tmp_path):
    for read in (FrozenModel.load, storage.sha256, storage.size, VideoDataset):
        with pytest.raises((FileNotFoundError, ValueError), match=rf"gs://{BUCKET}/nothing"):
            read(f"gs://{BUCKET}/nothing")
    with pytest.raises(ValueError, match=r"gs://bucket is no object of Cloud Storage: gs://BUCKET/NAME is"):
        storage.read_bytes("gs://bucket")
    proxy.refused = {"metadata": 403}
    with pytest.raises(PermissionError, match=rf"gs://{BUCKET}/m.safetensors cannot be reached: 403 "):
        FrozenModel.load(f"gs://{BUCKET}/m.safetensors")


def test_an_object_that_has_the_same_content_stays(strict):
    """Its readers ask for the version that they began with."""
    path = f"gs://{BUCKET}/folder/a"
    storage.write(path, b"content")
    first = google_storage.existing_blob(path)
    storage.write(path, b"content")
    assert google_storage.existing_blob(path).generation == first.generation
    storage.write(path, b"contend")
    assert storage.read_bytes(path) == b"contend"
    assert google_storage.existing_blob(path).generation != first.generation


@pytest.mark.parametrize(("uri", "name"), [("gs://b/x", "x"), ("gs://b//x", "/x"), ("gs://b/[x/ y", "[x/ y")])
def test_names_of_objects_are_taken_as_they_are(strict, uri, name):
    assert google_storage.blob_of(uri).name == name


def test_a_folder_is_told_from_a_file(strict, model):
    model.save(f"gs://{BUCKET}/d.parquet/m.safetensors")
    assert storage.is_folder(f"gs://{BUCKET}/d.parquet")
    assert not storage.is_folder(f"gs://{BUCKET}/d.par")
    assert not storage.is_folder(f"gs://{BUCKET}/d.parquet/m.safetensors")


def test_the_users_credentials_are_sent(proxy, model, monkeypatch):
    """To what STORAGE_EMULATOR_HOST names, the client sends none: here it takes the proxy for Google's."""
    from google.cloud.storage import _http

    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setattr(_http.Connection, "DEFAULT_API_ENDPOINT", proxy.url)
    google_storage._client.cache_clear()
    model.save(f"gs://{BUCKET}/m.safetensors")
    assert FrozenModel.load(f"gs://{BUCKET}/m.safetensors").model_id == model.model_id
    assert proxy.tokens == {f"Bearer {TOKEN}"}


def test_without_credentials_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    google_storage._client.cache_clear()
    with pytest.raises(PermissionError, match=rf"gs://{BUCKET}/m cannot be reached: .*none.json was not found"):
        storage.read_bytes(f"gs://{BUCKET}/m")
    for read in (storage.list_files, storage.exists, storage.check_writable, VideoDataset):
        with pytest.raises(PermissionError, match=rf"gs://{BUCKET}/m.* cannot be reached: .*none.json was not found"):
            read(f"gs://{BUCKET}/m")


@pytest.mark.parametrize("uri", ["gs://", "gs://bucket", "gs://bucket/"])
def test_a_bucket_alone_is_no_data_set(uri, capsys):
    with pytest.raises(SystemExit, match="1"):
        verify.main([uri])
    assert "gs://BUCKET/NAME is" in capsys.readouterr().err


def test_names_are_taken_as_they_are(strict, model):
    for name in ("a#b.safetensors", "a?b=c.safetensors", "a%20b c.safetensors", "ä/ö.safetensors"):
        uri = f"gs://{BUCKET}/{name}"
        model.save(uri)
        assert name in names()
        assert FrozenModel.load(uri).model_id == model.model_id


def test_a_damaged_download_is_noticed(proxy, model, monkeypatch):
    """The object's checksum is compared: damage on the way is an error, not a model."""
    model.save(f"gs://{BUCKET}/m.safetensors")
    forward = cloud_storage.FaultProxy._forward

    def damaged(self, request, body):
        status, headers, answer = forward(self, request, body)
        if cloud_storage.kind_of(request.command, request.path) == "download":
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        return status, headers, answer

    monkeypatch.setattr(cloud_storage.FaultProxy, "_forward", damaged)
    with pytest.raises(Exception, match=r"[Cc]hecksum|damaged"):
        FrozenModel.load(f"gs://{BUCKET}/m.safetensors")


class CloudMachine(protocol.DataSetMachine):
    """On Cloud Storage, where a process may die before and after each request that changes something."""

    points = ((gcs.Blob, "upload_from_string"), (gcs.Blob, "delete"))

    def new_output(self):
        generation_files.LEFTOVER_SECONDS = LEFTOVER_SECONDS
        return f"gs://{BUCKET}/{uuid.uuid4().hex}"

    def grow_old(self):
        generation_files.LEFTOVER_SECONDS = -60  # nobody can change when an object was written


LEFTOVER_SECONDS = generation_files.LEFTOVER_SECONDS


def test_the_promises_hold_on_cloud_storage(environment, monkeypatch):
    monkeypatch.setattr(generation_files, "LEFTOVER_SECONDS", LEFTOVER_SECONDS)
    with cloud_storage.fake_gcs_server() as url:
        environment(url)
        gcs.Client().create_bucket(BUCKET)
        settings = hypothesis.settings(
            max_examples=4,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        run_state_machine_as_test(CloudMachine, settings=settings)


def test_input_patterns_match_as_they_do_on_a_disk(strict):
    bucket = gcs.Client().bucket(BUCKET)
    for name in ("in/a.x", "in/.b.x", "in/day[0].x", "in/x/c.x", "in/x/y/d.x", "in/x/"):
        bucket.blob(name).upload_from_string(name)

    def found(pattern: str) -> list[str]:
        files = input_files.match([f"gs://{BUCKET}/{pattern}"])
        assert all(file.bytes == len(file.path.removeprefix(f"gs://{BUCKET}/")) for file in files)
        assert all(file.modified > 0 for file in files)
        return [file.path.removeprefix(f"gs://{BUCKET}/") for file in files]

    assert found("in/a.x") == ["in/a.x"]
    assert found("in/*.x") == ["in/a.x", "in/day[0].x"]
    assert found("in/day[0].x") == ["in/day[0].x"]
    assert found("in/*/*.x") == ["in/x/c.x"]
    assert found("in/x/**") == found("in/x/**/*.x") == ["in/x/c.x", "in/x/y/d.x"]
    assert found("in/{a,x/c}.x") == ["in/a.x", "in/x/c.x"]
    for pattern, message in (
        ("in/x", "is a folder: write gs://bucket/in/x/*"),
        ("in/x/", "is a folder: write gs://bucket/in/x/*"),
        ("in/none*", "matches no file"),
        ("in/{a.x,none}", "matches no file (its part gs://bucket/in/none)"),
    ):
        with pytest.raises(input_files.InputError, match=re.escape(message)):
            found(pattern)
    with pytest.raises(input_files.InputError, match="gs://elsewhere/"):
        input_files.match(["gs://elsewhere/*"])
    file, num_bytes = input_files.open_input(f"gs://{BUCKET}/in/a.x")
    with file:
        assert (file.read(), num_bytes) == (b"in/a.x", 6)
    with pytest.raises(input_files.InputError, match="does not exist"):
        input_files.open_input(f"gs://{BUCKET}/in/none")
