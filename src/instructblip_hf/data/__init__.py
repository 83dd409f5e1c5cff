"""Datasets: catalog, readers, templates, mixture, collators. Nothing here imports a model; a processor is handed in."""
