import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["vidpress.model.range_coder", "vidpress.pipeline.encode", "vidpress.pipeline.decode"]
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
