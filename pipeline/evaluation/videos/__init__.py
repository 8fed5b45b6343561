"""Evaluations of videos."""
