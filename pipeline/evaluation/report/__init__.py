"""The report of an evaluation, made from its records alone: results, figures and a page."""
