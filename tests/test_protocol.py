"""The promises on data sets, held by machines that Hypothesis drives; here on local disks."""

from hypothesis import HealthCheck, settings
from protocol import UnlistedFilesMachine

TestOnLocalDisk = UnlistedFilesMachine.TestCase
TestOnLocalDisk.settings = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
