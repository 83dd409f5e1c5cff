"""What stands between a vision tower and a language model."""
