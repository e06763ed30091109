"""Resolve and fetch: from a name on the Hub, a folder, a GGUF file, a wheel or MLflow to a snapshot of known content.

Imports `checkpoint` and `machine`; knows neither `quantise` nor `build`.
"""
