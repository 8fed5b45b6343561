import os
import pathlib
import platform
import subprocess
import sys

import numba
import pytest

from vidpress.model.coding import coder_loops
from vidpress.model.coding.coder_loops import LANES, ROW_BY_ROW


@pytest.mark.parametrize(
    ("name", "features", "loops"),
    [
        ("x86-64-v4", "", LANES),
        ("x86-64-v4", "+amx-tile,+amx-bf16", LANES),
        ("generic", "+avx2,+avx512vl", LANES),
        ("x86-64-v3", "", ROW_BY_ROW),
        ("x86-64", None, ROW_BY_ROW),
    ],
)
def test_the_processor_chooses(name, features, loops, monkeypatch):
    monkeypatch.setattr(numba.config, "CPU_NAME", name)
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    assert coder_loops.chosen.__wrapped__() is loops


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64 processor")
@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
def test_processors_without_wide_registers_write_and_read_the_same(tmp_path, cpu):
    program = (
        "import test_range_coder\n"
        "from vidpress.model.coding import coder_loops\n"
        "for loops in (coder_loops.LANES, coder_loops.ROW_BY_ROW):\n"
        "    coder_loops.chosen = lambda: loops\n"
        "    test_range_coder.test_golden_codes()\n"
    )
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_tensorflow_is_not_imported():
    program = (
        "import sys, numpy as np\n"
        "from vidpress.model.coding import range_coder\n"
        "from vidpress.model.tables import range_coding_tables\n"
        "tables = range_coding_tables.RangeCodingTables.fit(np.zeros((3, 2), int))\n"
        "range_coder.decompress(tables, range_coder.compress(tables, np.ones((3, 2), int)))\n"
        "sys.exit('tensorflow' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
