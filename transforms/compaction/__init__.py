"""Compacting a data set: many generations become one."""
