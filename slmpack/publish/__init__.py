"""Publish: versions, aliases and tags of the registry; finding what was published before; rollback; watching sources.

The alias moves last. Imports `prove` and below.
"""
