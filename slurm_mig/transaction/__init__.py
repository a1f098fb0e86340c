"""The one place that changes a GPU, under its lock."""
