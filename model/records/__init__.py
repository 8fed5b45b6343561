"""Input records: the framing of TFRecords, the messages in them, a video and its pooled input; no TensorFlow."""
