"""A shard, the Parquet file of a data set: what it holds, and what is checked before any of it is believed."""
