"""The logged model where nothing is installed but its own requirements, without a network."""
