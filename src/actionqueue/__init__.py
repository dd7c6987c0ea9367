"""ActionQueue: a durable task queue and action engine that lives inside a Python process.

>>> from actionqueue import ActionQueue
>>> queue = ActionQueue(":memory:")
>>> @queue.task
... def hello(name: str) -> str:
...     return f"hello {name}"
>>> with queue.running():
...     hello.submit("world").result(timeout=10)
'hello world'
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from actionqueue.public import *  # noqa: F403 - the same names as at run time
    from actionqueue.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        """A public name (or ``__all__``), imported on first use; see ``public``."""
        if not name.startswith("__") or name in ("__all__", "__version__"):
            from importlib import import_module

            public = import_module("actionqueue.public")
            if name == "__all__" or name in public.__all__:
                value = globals()[name] = getattr(public, name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
