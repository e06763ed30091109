"""A version's page: facts, changes since the version before, size against quality, as HTML."""
