"""What a teacher is worth to a student half its size (`python -m experiments.distillation.run`)."""
