"""raystudy: which fine-tuning configuration is best, and which factors matter, by how much, and how sure we are."""

__version__ = "0.1.0"
