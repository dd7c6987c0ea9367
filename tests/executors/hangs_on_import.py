"""A module that never comes to an end of its import."""

import signal

while True:
    signal.pause()
