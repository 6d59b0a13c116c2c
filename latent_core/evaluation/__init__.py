"""Measurements: studies, grading, grounding, replay."""
