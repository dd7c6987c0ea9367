"""For tests of programs that use ActionQueue: their queue on a simulated machine, where time and failures are the test's.

>>> from actionqueue import ActionQueue
>>> from actionqueue.testing import Simulation
>>> queue = ActionQueue(":memory:")
>>> @queue.task
... def double(n: int) -> int:
...     return 2 * n
>>> with Simulation(queue) as sim:
...     double.submit(21).result()
42

The same parts make the simulated world that ActionQueue itself is tested in: ``python -m actionqueue.testing``.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actionqueue.testing.contexts import SimulatedContext as SimulatedContext
    from actionqueue.testing.contexts import context as context
    from actionqueue.testing.retry_safety import assert_safe_to_retry as assert_safe_to_retry
    from actionqueue.testing.simulation import Simulation as Simulation
else:
    _HOMES = {
        "SimulatedContext": "contexts",
        "context": "contexts",
        "assert_safe_to_retry": "retry_safety",
        "Simulation": "simulation",
    }

    def __getattr__(name: str) -> object:
        """A public name, imported on first use: pytest imports this package wherever it is installed."""
        if name in _HOMES:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(f"actionqueue.testing.{_HOMES[name]}"), name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["SimulatedContext", "Simulation", "assert_safe_to_retry", "context"]
