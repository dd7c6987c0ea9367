"""The pytest plugin: the ``sim`` fixture, for the queue that the project names.

The queue is the fixture ``actionqueue_queue``, where there is one, else what the ini option of that name says::

    [pytest]
    actionqueue_queue = app.jobs:queue

``--sim-seed N`` chooses the seed (default 0), ``--sim-seeds N`` runs each test that uses ``sim`` with that many seeds
from there. A test that fails says with which seed, and how to run it again. Imported by pytest wherever this package is
installed, so it imports the rest when a test asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from actionqueue.testing.simulation import Simulation

QUEUE = "actionqueue_queue"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    parser.addini(QUEUE, "the queue of the sim fixture, as module:name", default="")
    group = parser.getgroup("actionqueue")
    group.addoption("--sim-seed", type=int, default=0, help="the (first) seed of the sim fixture")
    group.addoption("--sim-seeds", type=int, default=1, help="with how many seeds each test that uses sim runs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each seed."""
    count, first = _number(metafunc.config, "--sim-seeds"), _number(metafunc.config, "--sim-seed")
    if "sim_seed" in metafunc.fixturenames and count > 1:
        metafunc.parametrize("sim_seed", range(first, first + count))


@pytest.fixture
def sim_seed(request: pytest.FixtureRequest) -> int:
    """The seed of the simulation."""
    return _number(request.config, "--sim-seed")


def _number(config: pytest.Config, option: str) -> int:
    value: Any = config.getoption(option)
    return int(value)


@pytest.fixture
def sim(request: pytest.FixtureRequest, sim_seed: int) -> Generator[Simulation]:
    """The project's queue on a simulated machine, for the time of the test."""
    from actionqueue.testing.simulation import Simulation

    with Simulation(_queue(request), seed=sim_seed) as simulation:
        yield simulation


def _queue(request: pytest.FixtureRequest) -> Any:
    try:
        return request.getfixturevalue(QUEUE)
    except pytest.FixtureLookupError:
        named = str(request.config.getini(QUEUE))
    module, _, name = named.partition(":")
    if not name:
        raise pytest.UsageError(
            f"the sim fixture needs a queue: set {QUEUE} = module:name in the pytest configuration, or define a fixture "
            f"called {QUEUE} that returns it"
        )
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test says how to run it again."""
    report = yield
    if report.when == "call" and report.failed:
        seed = getattr(item, "funcargs", {}).get("sim_seed")
        if seed is not None:
            node = item.nodeid.partition("[")[0]
            report.sections.append(("simulation", f"seed {seed}; again: pytest {node} --sim-seed={seed}"))
    return report
