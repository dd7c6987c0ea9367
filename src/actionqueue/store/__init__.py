"""Where the log, its projection and the payloads are kept; nothing here knows what an event means."""
