"""The pure core: what a queue is. No clock, no randomness, no I/O; replaying its events gives the identical state."""
