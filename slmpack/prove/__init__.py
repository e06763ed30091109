"""Prove: smoke inference, measured quality, and validation of a logged model against its source.

The three know nothing of each other. Imports `log` and below; knows nothing of versions.
"""
