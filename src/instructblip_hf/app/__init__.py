"""Talking with a model: conversations whose answers arrive piece by piece, and the web page."""
