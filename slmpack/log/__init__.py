"""Log: the package with its wrapper, signature, requirements and provenance as a logged model; and reading it back.

What MLflow is and what is stored there. Imports `build`, `source` and below; knows no proof and no version.
"""
