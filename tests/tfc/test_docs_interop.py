"""The code of docs/interop.md does what it says: here, and where there is no tensorflow-compression."""

import re
import subprocess

import numpy as np
import pytest
from conftest import REPO

tfc = pytest.importorskip("tensorflow_compression", reason="needs tensorflow-compression: `make test-tfc`")

import tensorflow as tf  # noqa: E402
import theirs  # noqa: E402


def test_the_code_runs(vidpress_python, tmp_path, monkeypatch):
    text = (REPO / "docs" / "interop.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    there, here, tensorflow = (
        [block for block in blocks if block.startswith(f"# With {what}")]
        for what in ("tensorflow-compression", "vidpress", "any TensorFlow")
    )
    assert [len(there), len(here), len(tensorflow)] == [2, 2, 1]
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    prior = theirs.trained_prior(16, (3, 3), 10.0, 100)
    y = theirs.activations(16, 20 * 36, 7).reshape(20, 6, 6, 16)
    names = {"tf": tf, "tfc": tfc, "np": np, "prior": prior, "y": tf.constant(y)}
    for block in there:
        exec(block, names)
    entropy_model = names["entropy_model"]
    assert entropy_model.quantization_offset is not None
    assert names["codec"].compress(names["codec"].quantize(y)) == names["strings"]
    np.savez("y.npz", y=y, y_hat=entropy_model.quantize(y))
    module = tf.Module()
    module.entropy_model = entropy_model
    tf.saved_model.save(module, "saved_model")
    program = [
        "import sys, numpy as np\ny, expected = np.load('y.npz').values()",
        *here,
        "np.testing.assert_array_equal(y_hat, expected)",
        "assert codes == their_codes",
        "assert np.ptp(z_hat) > 2",
        "np.testing.assert_array_equal(again.dequantize(again.decompress(codes)), expected)",
        "assert 'tensorflow' not in sys.modules",
        *tensorflow,
        "np.testing.assert_array_equal(saved_tables.lookup, tables.lookup)",
    ]
    subprocess.run([vidpress_python, "-c", "\n".join(program)], check=True)
