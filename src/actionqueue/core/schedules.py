"""Schedules: which runs a rule has had, and which comes next."""
