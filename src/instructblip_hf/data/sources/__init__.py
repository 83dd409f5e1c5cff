"""Where examples come from: one module or package a source, each turning rows into TRL-form examples."""
