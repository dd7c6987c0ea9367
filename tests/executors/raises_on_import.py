"""A module that cannot be imported."""

raise RuntimeError("COLOUR_DATABASE is not set")
