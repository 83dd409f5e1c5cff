"""Evaluation: the metrics of the papers' datasets (`instructblip_hf.evaluation.metrics`)."""
