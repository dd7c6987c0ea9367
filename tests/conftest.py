"""What every test shares: how Hypothesis runs.

The suite is deterministic unless asked otherwise: the same examples each time, so that a red build is red for everyone.
Searching for new ones is a deliberate act::

    HYPOTHESIS_PROFILE=explore make test

What it finds becomes an explicit ``@example``.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, print_blob=True)
settings.register_profile(
    "explore",
    derandomize=False,
    deadline=None,
    max_examples=5_000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
