"""Evaluation by the papers' protocols: tasks, prompts, metrics."""
