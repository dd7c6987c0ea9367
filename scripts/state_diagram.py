"""Draw the states of a run into ``docs/concepts.md``, from the transition table itself."""

from __future__ import annotations

import sys

from actionqueue import RunState
from scripts.sections import Sections, run

COMMAND = "scripts.state_diagram"


def mermaid() -> str:
    """The table as a Mermaid state diagram; it begins in Scheduled or Ready, and ends in the terminal states."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {name(state)}" for state in (RunState.SCHEDULED, RunState.READY)]
    for state, following in RunState.transitions().items():
        lines += [f"    {name(state)} --> {name(after)}" for after in RunState if after in following]
        if state.is_terminal:
            lines.append(f"    {name(state)} --> [*]")
    return "\n".join([*lines, "```"])


def table() -> str:
    """The same as a table."""
    lines = ["| from | to |", "|---|---|"]
    for state, following in RunState.transitions().items():
        ends = ", ".join(f"`{after}`" for after in RunState if after in following)
        lines.append(f"| `{state}` | {ends or 'nothing: it is terminal'} |")
    return "\n".join(lines)


def name(state: RunState) -> str:
    """As the diagram writes it: ``RetryWait``."""
    return "".join(part.capitalize() for part in state.value.split("_"))


def states() -> str:
    """Diagram and table."""
    return f"{mermaid()}\n\n{table()}"


SECTIONS: Sections = {"docs/concepts.md#states": states}


def main() -> int:
    """Write the diagram."""
    return run(SECTIONS, COMMAND, "Draw the states of a run into docs/concepts.md.")


if __name__ == "__main__":
    sys.exit(main())
