"""Views: what the registry says of published versions, for a person or as JSON; nothing is changed or loaded."""
