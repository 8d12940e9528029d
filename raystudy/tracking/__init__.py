"""The record of a study: the journal, and MLflow fed from it."""
