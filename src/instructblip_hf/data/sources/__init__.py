"""Where examples come from: one module or package a source, each turning rows into examples.

The datasets of the catalog: `sources.table` says which functions read which, `sources.datasets` makes datasets of them.
"""
