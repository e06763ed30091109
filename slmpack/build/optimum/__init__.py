"""Architectures that the GenAI builder does not know: exported by optimum in an environment of its own."""
