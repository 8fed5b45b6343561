import dataclasses
import os
import subprocess
import sys

import pytest
from conftest import frame_level, random_model, write_records

from vidpress.model.features import FeatureSpec


@pytest.mark.parametrize(
    "module", ["vidpress.model.coding.range_coder", "vidpress.pipeline.encode", "vidpress.pipeline.decode"]
)
def test_no_folder_for_the_cache_is_needed(module):
    program = (
        "import numba.core.caching as caching\n"
        "for name, locator in list(vars(caching).items()):\n"
        "    if name.endswith('CacheLocator') or 'CacheLocatorFs' in name:\n"
        "        locator.from_function = classmethod(lambda *arguments: None)\n"
        f"import {module}\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


JOBS = """
import sys
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.numba_internals import Loop
from vidpress.model.warm_up import warm_up
from vidpress.pipeline import encode

def compiled():
    return {
        f"{name}.{key}": list(value.signatures)
        for name, module in list(sys.modules.items()) if name.startswith("vidpress.")
        for key, value in vars(module).items() if isinstance(value, Loop)
    }

warm_up()
before = compiled()
assert any(before.values())
records, model, output = sys.argv[1:]
encode.main(["--input", records, "--model", model, "--output", output])
assert sum(len(batch.ids) for batch in VideoDataset(output, shuffle=True)) == 300
assert compiled() == before, {key: value for key, value in compiled().items() if value != before[key]}
"""


@pytest.mark.parametrize(("rounds_every_layer", "top_k"), [(False, 0), (True, 0), (True, 3)])
@pytest.mark.parametrize(("features", "hidden"), [("rgb:24,audio:8", (40,)), ("rgb:400,audio:8", (50, 40))])
def test_a_job_compiles_nothing_after_the_warm_up(features, hidden, rounds_every_layer, top_k, tmp_path):
    spec = FeatureSpec.parse(features)
    model = random_model(spec, hidden)
    model = dataclasses.replace(model, rounds_every_layer=rounds_every_layer, rounding_lmbda=0.03, top_k=top_k)
    model.save(tmp_path / "model.safetensors")
    records = write_records(tmp_path / "a.tfrecord", [frame_level(index, spec) for index in range(300)])
    arguments = [records, str(tmp_path / "model.safetensors"), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", JOBS, *arguments], check=True)


CALL = """
import numpy as np
from vidpress.model.coding import range_coder
from vidpress.model.tables.range_coding_tables import RangeCodingTables
values = np.array([[0], [1], [0]], np.int32)
tables = RangeCodingTables.fit(values)
codes = range_coder.encode_cheapest(tables, values).strings()
assert (range_coder.decompress(tables, codes) == values).all()
"""


def compiles(tmp_path, cache) -> bool:
    """Run the range coder's loops in a new process; return whether it said that it compiled."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    result = subprocess.run([sys.executable, "-c", CALL], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr in ("", "Compiling for this processor, which takes about 20 s the first time.\n")
    return bool(result.stderr)


def test_damaged_machine_code_is_compiled_anew(tmp_path):
    cache = tmp_path / "cache"
    assert compiles(tmp_path, cache)
    assert not compiles(tmp_path, cache)
    files = sorted(cache.glob("*/*.nb[ic]"))
    assert len(files) >= 6
    for number, path in enumerate(files):
        content = path.read_bytes()
        middle = len(content) // 2
        changed = (content[:middle], b"", content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
        path.write_bytes(changed[number % 3])
    assert compiles(tmp_path, cache)
    assert not compiles(tmp_path, cache)


def test_a_folder_that_cannot_hold_a_cache_is_done_without(tmp_path):
    (tmp_path / "file").write_text("I am no folder")
    compiles(tmp_path, tmp_path / "file" / "cache")
