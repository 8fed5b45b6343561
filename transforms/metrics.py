"""The counters and distributions of the transforms, in one place; names carry their unit.

Metrics count attempts, so that retries may count twice; the manifest's counts are exact.
"""

from __future__ import annotations

from apache_beam.metrics import Metrics

NAMESPACE = "vidpress"

RECORDS_READ = Metrics.counter(NAMESPACE, "records-read")
INPUT_BYTES = Metrics.counter(NAMESPACE, "input-bytes")
VIDEOS_ENCODED = Metrics.counter(NAMESPACE, "videos-encoded")
CODE_BYTES = Metrics.counter(NAMESPACE, "code-bytes")
DEAD_LETTERS = Metrics.counter(NAMESPACE, "dead-letters")
DUPLICATES = Metrics.counter(NAMESPACE, "duplicates")
SHARDS_WRITTEN = Metrics.counter(NAMESPACE, "shards-written")
VIDEOS_DECODED = Metrics.counter(NAMESPACE, "videos-decoded")
VIDEOS_COPIED = Metrics.counter(NAMESPACE, "videos-copied")
MODEL_LOAD_MSEC = Metrics.distribution(NAMESPACE, "model-load-msec")
FRAMES_PER_VIDEO = Metrics.distribution(NAMESPACE, "frames-per-video")
CODE_BYTES_PER_VIDEO = Metrics.distribution(NAMESPACE, "code-bytes-per-video")
