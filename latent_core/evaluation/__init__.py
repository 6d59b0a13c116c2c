"""What is measured: studies, grading, grounding, replay."""
