"""The life of a run: the transition table, every refusal, and the machine against a naive model."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actionqueue.core.errors import (
    ActionQueueError,
    AttemptAlreadyActive,
    AttemptCountOverflow,
    AttemptFinishRequiresRunning,
    AttemptInProgress,
    AttemptOwnershipMismatch,
    AttemptStartRequiresRunning,
    InvalidRunId,
    InvalidSubmission,
    InvalidTaskId,
    InvalidTransition,
    NoActiveAttempt,
    NotReschedulable,
    PriorityMutationRequiresReady,
    ReadyScheduledAtAfterCreatedAt,
    RunInstanceConstructionError,
    RunInstanceError,
)
from actionqueue.core.ids import NIL, AttemptId, RunId, TaskId
from actionqueue.core.instants import INSTANT_MAX
from actionqueue.core.run import (
    ATTEMPT_COUNT_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    RunInstance,
    RunState,
    is_valid_transition,
)

SCHEDULED, READY, LEASED, RUNNING = RunState.SCHEDULED, RunState.READY, RunState.LEASED, RunState.RUNNING
RETRY_WAIT, SUSPENDED, AWAITING = RunState.RETRY_WAIT, RunState.SUSPENDED, RunState.AWAITING
COMPLETED, FAILED, CANCELED = RunState.COMPLETED, RunState.FAILED, RunState.CANCELED
TERMINAL = [COMPLETED, FAILED, CANCELED]

# SEMANTICS section 3, written a second time and in words: the check of the literal in run.py.
CONTRACT = """
    scheduled   -> ready canceled
    ready       -> leased canceled
    leased      -> running ready canceled
    running     -> retry_wait suspended awaiting completed failed canceled
    retry_wait  -> ready failed canceled
    suspended   -> ready canceled
    awaiting    -> ready failed canceled
"""
LEGAL = {
    (RunState(line.split()[0]), RunState(successor))
    for line in CONTRACT.strip().splitlines()
    for successor in line.split()[2:]
}

WAY_TO: dict[RunState, list[RunState]] = {
    SCHEDULED: [],
    READY: [READY],
    LEASED: [READY, LEASED],
    RUNNING: [READY, LEASED, RUNNING],
    RETRY_WAIT: [READY, LEASED, RUNNING, RETRY_WAIT],
    SUSPENDED: [READY, LEASED, RUNNING, SUSPENDED],
    AWAITING: [READY, LEASED, RUNNING, AWAITING],
    COMPLETED: [READY, LEASED, RUNNING, COMPLETED],
    FAILED: [READY, LEASED, RUNNING, FAILED],
    CANCELED: [CANCELED],
}

RUN_ID = RunId.parse("018bcfe5-6800-7000-8000-000000000001")
TASK_ID = TaskId.parse("018bcfe5-6800-7000-8000-000000000002")
ATTEMPT_1 = AttemptId.parse("018bcfe5-6800-7000-8000-000000000003")
ATTEMPT_2 = AttemptId.parse("018bcfe5-6800-7000-8000-000000000004")
Maker = Callable[[], RunInstance]

NIL_FORMS = [NIL, uuid.UUID(int=0), str(uuid.UUID(int=0))]
every_state = pytest.mark.parametrize("state", RunState, ids=str)
states = st.sampled_from(RunState)
terminal_states = st.sampled_from(TERMINAL)


def run_in(state: RunState) -> RunInstance:
    run = RunInstance.new_scheduled_with_id(RUN_ID, TASK_ID, 2_000, 1_000)
    for step in WAY_TO[state]:
        run.transition_to(step)
    return run


def run_with_open_attempt() -> RunInstance:
    run = run_in(RUNNING)
    run.start_attempt(ATTEMPT_1)
    return run


def refusal_of(run: RunInstance, call: Callable[[RunInstance], object], kind: type[ActionQueueError]) -> Any:
    """The refusal with which ``run`` answers the call, after checking that the call changed nothing."""
    before = copy.copy(run)
    with pytest.raises(kind) as refusal:
        call(run)
    assert type(refusal.value) is kind
    assert run == before
    return refusal.value


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("from_state", "to_state"), list(itertools.product(RunState, RunState)), ids=str)
def test_a_run_moves_along_the_edges_of_the_contract_and_no_others(from_state: RunState, to_state: RunState) -> None:
    """The full product of states.

    state_transitions#1, state_transitions#2, state_transitions#3, state_transitions#4, state_transitions#7,
    state_transitions#8, state_transitions#9, state_transitions#10.
    """
    legal = (from_state, to_state) in LEGAL
    run = run_in(from_state)

    assert is_valid_transition(from_state, to_state) is legal
    assert RunState.is_valid_transition(from_state, to_state) is legal
    assert (to_state in RunState.transitions()[from_state]) is legal
    if legal:
        run.transition_to(to_state)
        assert run.state is to_state
    else:
        refusal = refusal_of(run, lambda run: run.transition_to(to_state), InvalidTransition)
        assert (refusal.run_id, refusal.from_state, refusal.to_state) == (RUN_ID, from_state, to_state)


def test_the_contract_has_21_edges_and_the_table_no_more() -> None:
    edges = {(origin, target) for origin, targets in RunState.transitions().items() for target in targets}

    assert edges == LEGAL
    assert len(edges) == 21


@every_state
def test_exactly_completed_failed_and_canceled_are_terminal_and_have_no_successors(state: RunState) -> None:
    """state_transitions#5, state_transitions#6."""
    assert state.is_terminal is (state in TERMINAL)
    assert run_in(state).is_terminal is state.is_terminal
    assert bool(RunState.transitions()[state]) is not state.is_terminal
    assert all(is_valid_transition(state, successor) for successor in RunState.transitions()[state])


@settings(max_examples=256)
@given(terminal=terminal_states, target=states)
def test_nothing_follows_a_terminal_state(terminal: RunState, target: RunState) -> None:
    """proptest_state_machine#1, proptest_state_machine#3."""
    assert not is_valid_transition(terminal, target)


@settings(max_examples=256)
@given(origin=states, target=states)
def test_no_state_follows_itself(origin: RunState, target: RunState) -> None:
    """proptest_state_machine#2."""
    assert not (is_valid_transition(origin, target) and origin is target)
    assert not is_valid_transition(origin, origin)


def test_the_table_cannot_be_written() -> None:
    table: Any = RunState.transitions()

    assert list(table) == list(RunState)
    with pytest.raises(TypeError):
        table[COMPLETED] = frozenset({READY})
    with pytest.raises(AttributeError):
        table[COMPLETED].add(READY)


@every_state
def test_a_state_is_its_snake_case_name_in_text_json_and_pickle(state: RunState) -> None:
    """serde_roundtrip#7 (of every state)."""
    assert str(state) == f"{state}" == state.value == state.name.lower()
    assert RunState(state.value) is state
    assert msgspec.json.decode(msgspec.json.encode(state), type=RunState) is state
    assert pickle.loads(pickle.dumps(state)) is copy.deepcopy(state) is state
    assert {state: 1}[RunState(state.value)] == 1


@every_state
def test_a_state_given_as_text_is_not_a_state(state: RunState) -> None:
    text: Any = state.value

    for run in map(run_in, RunState):
        refusal_of(run, lambda run: run.transition_to(text), InvalidTransition)


# --- construction ----------------------------------------------------------------------------------------------------


def test_a_scheduled_run_has_no_attempt_and_changed_last_when_it_was_created() -> None:
    run = RunInstance.new_scheduled_with_id(RUN_ID, TASK_ID, 2_000, 1_000)

    assert (run.id, run.task_id, run.state) == (RUN_ID, TASK_ID, SCHEDULED)
    assert (run.current_attempt_id, run.attempt_count) == (None, 0)
    assert (run.created_at, run.scheduled_at, run.last_state_change_at) == (1_000, 2_000, 1_000)
    assert run.effective_priority == 0
    assert not run.is_terminal


def test_a_ready_run_takes_its_priority_and_is_due_at_its_creation_at_the_latest() -> None:
    run = RunInstance.new_ready_with_id(RUN_ID, TASK_ID, 1_000, 1_000, -7)

    assert (run.id, run.task_id, run.state) == (RUN_ID, TASK_ID, READY)
    assert (run.created_at, run.scheduled_at, run.last_state_change_at) == (1_000, 1_000, 1_000)
    assert (run.effective_priority, run.attempt_count, run.current_attempt_id) == (-7, 0, None)


def test_runs_made_without_an_id_get_fresh_ones() -> None:
    runs = [
        RunInstance.new_scheduled(TASK_ID, 2_000, 1_000),
        RunInstance.new_ready(TASK_ID, 1_000, 1_000, 5),
        RunInstance.new_scheduled(TASK_ID, 2_000, 1_000),
    ]

    assert len({run.id for run in runs}) == 3
    assert all(run.id.version == 7 and run.task_id == TASK_ID for run in runs)
    assert [run.state for run in runs] == [SCHEDULED, READY, SCHEDULED]


def test_ids_are_taken_in_every_form_and_given_back_as_their_types() -> None:
    forms = [RunId, uuid.UUID, str, bytes]
    for form in forms:
        run_id, task_id, attempt_id = (as_form(an_id, form) for an_id in (RUN_ID, TASK_ID, ATTEMPT_1))
        run = RunInstance.new_ready_with_id(run_id, task_id, 0, 0, 0)
        run.transition_to(LEASED)
        run.transition_to(RUNNING)
        run.start_attempt(attempt_id)

        assert (run.id, run.task_id, run.current_attempt_id) == (RUN_ID, TASK_ID, ATTEMPT_1)
        assert (type(run.id), type(run.task_id), type(run.current_attempt_id)) == (RunId, TaskId, AttemptId)
        assert (run.id_bytes, run.task_id_bytes) == (RUN_ID.bytes, TASK_ID.bytes)
        assert run.current_attempt_id_bytes == ATTEMPT_1.bytes
        run.finish_attempt(attempt_id)
        assert run.current_attempt_id is None
        assert run.current_attempt_id_bytes is None


def as_form(an_id: uuid.UUID, form: type) -> Any:
    if form is bytes:
        return an_id.bytes
    return str(an_id) if form is str else uuid.UUID(bytes=an_id.bytes)


def test_a_ready_run_due_after_its_creation_is_refused_with_both_instants() -> None:
    """run_instance_invariants#1."""
    makers: list[Maker] = [
        lambda: RunInstance.new_ready_with_id(RUN_ID, TASK_ID, 2_000, 1_000, 0),
        lambda: RunInstance.new_ready(TASK_ID, 2_000, 1_000, 0),
    ]
    for make in makers:
        with pytest.raises(ReadyScheduledAtAfterCreatedAt) as refusal:
            make()
        assert refusal.value.facts["scheduled_at"] == 2_000
        assert refusal.value.facts["created_at"] == 1_000
        assert isinstance(refusal.value, RunInstanceConstructionError)


@pytest.mark.parametrize("nil", NIL_FORMS, ids=["bytes", "uuid", "text"])
def test_a_nil_run_id_is_refused(nil: bytes | uuid.UUID | str) -> None:
    """run_instance_invariants#2."""
    with pytest.raises(InvalidRunId) as refusal:
        RunInstance.new_scheduled_with_id(nil, TASK_ID, 0, 0)
    assert refusal.value.facts["run_id"] == uuid.UUID(int=0)
    assert isinstance(refusal.value, RunInstanceConstructionError)
    with pytest.raises(InvalidRunId):
        RunInstance.new_ready_with_id(nil, TASK_ID, 0, 0, 0)


@pytest.mark.parametrize("nil", NIL_FORMS, ids=["bytes", "uuid", "text"])
def test_a_nil_task_id_is_refused(nil: bytes | uuid.UUID | str) -> None:
    """run_instance_invariants#3."""
    makers: list[Maker] = [
        lambda: RunInstance.new_scheduled(nil, 0, 0),
        lambda: RunInstance.new_scheduled_with_id(RUN_ID, nil, 0, 0),
        lambda: RunInstance.new_ready(nil, 0, 0, 0),
        lambda: RunInstance.new_ready_with_id(RUN_ID, nil, 0, 0, 0),
    ]
    for make in makers:
        with pytest.raises(InvalidTaskId) as refusal:
            make()
        assert refusal.value.facts["task_id"] == uuid.UUID(int=0)
        assert isinstance(refusal.value, RunInstanceConstructionError)


MALFORMED_IDS: list[Any] = ["", "x", b"", bytes(15), bytes(17), 7, None]
NOT_INSTANTS: list[Any] = [-1, INSTANT_MAX + 1, True, 1.0, "1", None]
NOT_PRIORITIES: list[Any] = [PRIORITY_MIN - 1, PRIORITY_MAX + 1, False, 1.0, "1", None]
NOT_COUNTS: list[Any] = [-1, ATTEMPT_COUNT_MAX + 1, True, 1.0, "1", None]


def problem_fields(error: pytest.ExceptionInfo[ValueError]) -> list[str]:
    assert isinstance(error.value, InvalidSubmission)
    problems = error.value.facts["problems"]
    assert isinstance(problems, dict)
    return list(problems)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(["id", "task_id"], MALFORMED_IDS),
        *itertools.product(["scheduled_at", "created_at"], NOT_INSTANTS),
        *itertools.product(["effective_priority"], NOT_PRIORITIES),
    ],
)
def test_a_run_of_malformed_values_is_a_value_error_that_names_the_field(field: str, value: object) -> None:
    given: dict[str, Any] = {"id": RUN_ID, "task_id": TASK_ID, "scheduled_at": 0, "created_at": 0}
    ready = {**given, "effective_priority": 0}
    for make, arguments in ((RunInstance.new_ready_with_id, ready), (RunInstance.new_scheduled_with_id, given)):
        if field in arguments:
            with pytest.raises(ValueError) as error:
                make(**{**arguments, field: value})
            assert problem_fields(error) == [field]


def test_the_whole_range_of_instants_and_priorities_is_taken() -> None:
    for instant, priority in itertools.product([0, INSTANT_MAX], [PRIORITY_MIN, PRIORITY_MAX]):
        run = RunInstance.new_ready_with_id(RUN_ID, TASK_ID, instant, instant, priority)
        run.record_state_change_at(INSTANT_MAX - instant)

        assert (run.scheduled_at, run.created_at, run.effective_priority) == (instant, instant, priority)
        assert run.last_state_change_at == INSTANT_MAX - instant
    assert RunInstance.new_scheduled_with_id(RUN_ID, TASK_ID, INSTANT_MAX, 0).scheduled_at == INSTANT_MAX


# --- arguments and fields --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "call"),
    [
        *(("instant", bad, RunInstance.record_state_change_at) for bad in NOT_INSTANTS),
        *(("scheduled_at", bad, RunInstance.reschedule) for bad in NOT_INSTANTS),
        *(("effective_priority", bad, RunInstance.set_effective_priority) for bad in NOT_PRIORITIES),
        *(("effective_priority", bad, RunInstance.promote_to_ready_with_priority) for bad in NOT_PRIORITIES),
        *(("attempt_id", bad, RunInstance.start_attempt) for bad in [*MALFORMED_IDS, *NIL_FORMS]),
        *(("attempt_id", bad, RunInstance.finish_attempt) for bad in [*MALFORMED_IDS, *NIL_FORMS]),
        *(
            ("count", bad, lambda run, count: run.restore_attempt_state_for_bootstrap(count, ATTEMPT_1))
            for bad in NOT_COUNTS
        ),
        *(
            ("attempt_id", bad, lambda run, attempt: run.restore_attempt_state_for_bootstrap(3, attempt))
            for bad in [*MALFORMED_IDS[:-1], *NIL_FORMS]
        ),
    ],
)
def test_a_malformed_argument_is_a_value_error_in_every_state_and_changes_nothing(
    field: str, value: object, call: Callable[[RunInstance, object], None]
) -> None:
    for run in [*map(run_in, RunState), run_with_open_attempt()]:
        before = copy.copy(run)
        with pytest.raises(ValueError) as error:
            call(run, value)
        assert problem_fields(error) == [field]
        assert run == before


@pytest.mark.parametrize(
    "name",
    [
        *(name for name, member in vars(RunInstance).items() if isinstance(member, property)),
        "unheard_of",
    ],
)
def test_no_field_can_be_assigned_and_none_added(name: str) -> None:
    run = run_in(RUNNING)
    before = copy.copy(run)

    assert hasattr(run, name) is (name != "unheard_of")
    with pytest.raises(AttributeError):
        setattr(run, name, None)
    assert run == before


# --- transitions -----------------------------------------------------------------------------------------------------


def test_a_scheduled_run_cannot_skip_ready_and_the_refusal_names_both_states() -> None:
    """run_instance_invariants#4, negative_transitions/04, state_transitions#4."""
    refusal = refusal_of(run_in(SCHEDULED), lambda run: run.transition_to(RUNNING), InvalidTransition)

    assert (refusal.run_id, refusal.from_state, refusal.to_state) == (RUN_ID, SCHEDULED, RUNNING)
    assert "scheduled" in str(refusal)
    assert "running" in str(refusal)
    assert "canceled, ready" in str(refusal)


@pytest.mark.parametrize(("ended", "target"), [(COMPLETED, READY), (FAILED, RUNNING), (CANCELED, READY)], ids=str)
def test_a_run_that_has_ended_stays_ended(ended: RunState, target: RunState) -> None:
    """negative_transitions/01, negative_transitions/02, negative_transitions/03."""
    run = run_in(RUNNING)
    run.start_attempt(ATTEMPT_1)
    run.finish_attempt(ATTEMPT_1)
    run.transition_to(ended)

    refusal = refusal_of(run, lambda run: run.transition_to(target), InvalidTransition)

    assert (refusal.from_state, refusal.to_state) == (ended, target)
    assert "ended" in str(refusal)


@pytest.mark.parametrize("target", [RETRY_WAIT, SUSPENDED, AWAITING, COMPLETED, FAILED], ids=str)
def test_leaving_running_needs_the_attempt_finished(target: RunState) -> None:
    run = run_with_open_attempt()

    refusal = refusal_of(run, lambda run: run.transition_to(target), AttemptInProgress)
    assert (refusal.run_id, refusal.from_state, refusal.to_state) == (RUN_ID, RUNNING, target)
    assert refusal.active_attempt_id == ATTEMPT_1

    run.finish_attempt(ATTEMPT_1)
    run.transition_to(target)
    assert run.state is target
    assert run.attempt_count == 1


def test_a_running_run_can_be_canceled_with_its_attempt_open_and_has_none_afterwards() -> None:
    run = run_with_open_attempt()

    run.transition_to(CANCELED)

    assert (run.state, run.current_attempt_id, run.attempt_count) == (CANCELED, None, 1)


@pytest.mark.parametrize("target", [SCHEDULED, READY, LEASED, RUNNING], ids=str)
def test_an_edge_the_table_lacks_is_refused_as_such_even_with_an_attempt_open(target: RunState) -> None:
    refusal_of(run_with_open_attempt(), lambda run: run.transition_to(target), InvalidTransition)


@pytest.mark.parametrize(("from_state", "to_state"), sorted(LEGAL, key=str), ids=str)
def test_the_current_attempt_is_cleared_on_every_edge_except_into_running(
    from_state: RunState, to_state: RunState
) -> None:
    run = run_in(from_state)
    kept_open = from_state is not RUNNING
    run.restore_attempt_state_for_bootstrap(3, ATTEMPT_1 if kept_open else None)

    run.transition_to(to_state)

    assert run.current_attempt_id == (ATTEMPT_1 if to_state is RUNNING else None)
    assert run.attempt_count == 3


@every_state
def test_promoting_goes_exactly_where_the_table_lets_ready_follow(state: RunState) -> None:
    calls: list[Callable[[RunInstance], None]] = [
        RunInstance.promote_to_ready,
        lambda run: run.promote_to_ready_with_priority(9),
    ]
    for call, priority in zip(calls, [0, 9], strict=True):
        run = run_in(state)
        if (state, READY) in LEGAL:
            call(run)
            assert (run.state, run.effective_priority) == (READY, priority)
        else:
            refusal = refusal_of(run, call, InvalidTransition)
            assert (refusal.from_state, refusal.to_state) == (state, READY)


@every_state
def test_the_priority_is_set_only_while_ready(state: RunState) -> None:
    run = run_in(state)
    if state is READY:
        run.set_effective_priority(PRIORITY_MIN)
        assert run.effective_priority == PRIORITY_MIN
    else:
        refusal = refusal_of(run, lambda run: run.set_effective_priority(1), PriorityMutationRequiresReady)
        assert (refusal.run_id, refusal.current_state) == (RUN_ID, state)


@every_state
def test_only_a_scheduled_run_is_rescheduled(state: RunState) -> None:
    run = run_in(state)
    if state is SCHEDULED:
        run.reschedule(INSTANT_MAX)
        assert run == replaced(run_in(SCHEDULED), _scheduled_at=INSTANT_MAX)
    else:
        refusal = refusal_of(run, lambda run: run.reschedule(5), NotReschedulable)
        assert (refusal.run_id, refusal.current_state, refusal.scheduled_at) == (RUN_ID, state, 2_000)


@every_state
def test_stamping_a_change_changes_only_the_stamp(state: RunState) -> None:
    run = run_in(state)

    run.record_state_change_at(7_000)

    assert run == replaced(run_in(state), _last_state_change_at=7_000)


def replaced(run: RunInstance, **fields: object) -> RunInstance:
    return msgspec.structs.replace(run, **fields)


# --- attempts --------------------------------------------------------------------------------------------------------


def test_an_attempt_is_counted_when_it_starts_and_current_until_it_finishes() -> None:
    run = run_in(RUNNING)

    run.start_attempt(ATTEMPT_1)
    assert (run.current_attempt_id, run.attempt_count) == (ATTEMPT_1, 1)
    run.finish_attempt(ATTEMPT_1)
    assert (run.current_attempt_id, run.attempt_count) == (None, 1)
    run.start_attempt(ATTEMPT_2)
    assert (run.current_attempt_id, run.attempt_count) == (ATTEMPT_2, 2)


@pytest.mark.parametrize("state", [state for state in RunState if state is not RUNNING], ids=str)
def test_attempts_start_and_finish_only_in_running(state: RunState) -> None:
    calls: list[tuple[Callable[[RunInstance], None], type[RunInstanceError]]] = [
        (lambda run: run.start_attempt(ATTEMPT_1), AttemptStartRequiresRunning),
        (lambda run: run.finish_attempt(ATTEMPT_1), AttemptFinishRequiresRunning),
    ]
    for active in (None, ATTEMPT_1):
        for call, kind in calls:
            run = run_in(state)
            run.restore_attempt_state_for_bootstrap(ATTEMPT_COUNT_MAX, active)
            refusal = refusal_of(run, call, kind)
            assert (refusal.run_id, refusal.current_state, refusal.attempt_id) == (RUN_ID, state, ATTEMPT_1)


@pytest.mark.parametrize("attempt_id", [ATTEMPT_1, ATTEMPT_2], ids=["the same", "another"])
def test_no_attempt_starts_while_one_is_open(attempt_id: AttemptId) -> None:
    run = run_with_open_attempt()

    refusal = refusal_of(run, lambda run: run.start_attempt(attempt_id), AttemptAlreadyActive)

    assert (refusal.run_id, refusal.active_attempt_id, refusal.attempt_id) == (RUN_ID, ATTEMPT_1, attempt_id)


def test_the_count_stops_at_32_bits() -> None:
    run = run_in(RUNNING)
    run.restore_attempt_state_for_bootstrap(ATTEMPT_COUNT_MAX - 1, None)

    run.start_attempt(ATTEMPT_1)
    run.finish_attempt(ATTEMPT_1)
    refusal = refusal_of(run, lambda run: run.start_attempt(ATTEMPT_2), AttemptCountOverflow)

    assert run.attempt_count == ATTEMPT_COUNT_MAX == 4_294_967_295
    assert (refusal.run_id, refusal.attempt_count) == (RUN_ID, ATTEMPT_COUNT_MAX)


def test_an_open_attempt_is_refused_as_such_before_the_count() -> None:
    run = run_in(RUNNING)
    run.restore_attempt_state_for_bootstrap(ATTEMPT_COUNT_MAX, ATTEMPT_1)

    refusal_of(run, lambda run: run.start_attempt(ATTEMPT_2), AttemptAlreadyActive)


def test_an_attempt_finishes_once() -> None:
    """negative_transitions/05."""
    run = run_with_open_attempt()
    run.finish_attempt(ATTEMPT_1)

    refusal = refusal_of(run, lambda run: run.finish_attempt(ATTEMPT_1), NoActiveAttempt)

    assert (refusal.run_id, refusal.attempt_id) == (RUN_ID, ATTEMPT_1)


def test_only_the_open_attempt_is_finished() -> None:
    refusal = refusal_of(run_with_open_attempt(), lambda run: run.finish_attempt(ATTEMPT_2), AttemptOwnershipMismatch)

    assert (refusal.run_id, refusal.expected_attempt_id, refusal.actual_attempt_id) == (RUN_ID, ATTEMPT_1, ATTEMPT_2)


@every_state
def test_a_stored_attempt_state_is_restored_directly_and_alone(state: RunState) -> None:
    run = run_in(state)

    run.restore_attempt_state_for_bootstrap(ATTEMPT_COUNT_MAX, str(ATTEMPT_2))

    assert run == replaced(run_in(state), _attempt_count=ATTEMPT_COUNT_MAX, _current_attempt_id=ATTEMPT_2.bytes)
    run.restore_attempt_state_for_bootstrap(0, None)
    assert run == run_in(state)


# --- values ----------------------------------------------------------------------------------------------------------


def test_runs_are_equal_by_value_and_a_copy_is_independent() -> None:
    run = run_with_open_attempt()
    other = copy.copy(run)

    assert other == run
    assert other is not run
    other.finish_attempt(ATTEMPT_1)
    assert other != run
    assert run.current_attempt_id == ATTEMPT_1


@every_state
def test_a_run_survives_pickle_deepcopy_json_and_msgpack(state: RunState) -> None:
    """serde_roundtrip#18 (of every state)."""
    run = run_in(state)
    run.restore_attempt_state_for_bootstrap(1, ATTEMPT_1 if state is RUNNING else None)

    for again in (
        pickle.loads(pickle.dumps(run)),
        copy.deepcopy(run),
        msgspec.json.decode(msgspec.json.encode(run), type=RunInstance),
        msgspec.msgpack.decode(msgspec.msgpack.encode(run), type=RunInstance),
    ):
        assert again == run
        assert again.state is state
        assert again.is_terminal is state.is_terminal


def test_a_run_differs_from_another_in_any_one_field() -> None:
    run = run_in(READY)
    others = [
        replaced(run, **{field: value})
        for field, value in {
            "_id": ATTEMPT_2.bytes,
            "_task_id": ATTEMPT_2.bytes,
            "_state": LEASED,
            "_current_attempt_id": ATTEMPT_2.bytes,
            "_attempt_count": 9,
            "_created_at": 9,
            "_scheduled_at": 9,
            "_effective_priority": 9,
            "_last_state_change_at": 9,
        }.items()
    ]

    assert len(others) == len(RunInstance.__struct_fields__)
    assert all(other != run for other in others)


def test_the_repr_shows_every_field() -> None:
    run = RunInstance.new_ready_with_id(RUN_ID, TASK_ID, 500, 1_000, -7)
    for state in (LEASED, RUNNING):
        run.transition_to(state)
    run.start_attempt(ATTEMPT_1)
    run.record_state_change_at(2_000)

    assert repr(run) == (
        "RunInstance(id='018bcfe5-6800-7000-8000-000000000001', task_id='018bcfe5-6800-7000-8000-000000000002',"
        " state=running, current_attempt_id='018bcfe5-6800-7000-8000-000000000003', attempt_count=1, created_at=1000,"
        " scheduled_at=500, effective_priority=-7, last_state_change_at=2000)"
    )
    assert "current_attempt_id=None" in repr(run_in(READY))


def test_the_garbage_collector_does_not_visit_runs() -> None:
    run = run_with_open_attempt()

    assert not gc.is_tracked(run)
    assert not gc.is_tracked(copy.copy(run))
    assert not gc.is_tracked(pickle.loads(pickle.dumps(run)))


def test_a_refusal_survives_pickle_with_its_facts() -> None:
    refusal = refusal_of(run_with_open_attempt(), lambda run: run.finish_attempt(ATTEMPT_2), AttemptOwnershipMismatch)

    again = pickle.loads(pickle.dumps(refusal))

    assert (type(again), str(again), again.facts) == (AttemptOwnershipMismatch, str(refusal), refusal.facts)


# --- against a naive model -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What a run should be, in the plainest words: each call gives the next model, or the name of the refusal."""

    state: str = "scheduled"
    current: AttemptId | None = None
    count: int = 0
    due: int = 2_000
    priority: int = 0

    def move(self, target: str) -> Model | str:
        if (RunState(self.state), RunState(target)) not in LEGAL:
            return "InvalidTransition"
        if self.state == "running" and self.current is not None and target != "canceled":
            return "AttemptInProgress"
        return replace(self, state=target, current=self.current if target == "running" else None)

    def promote_with(self, priority: int) -> Model | str:
        moved = self.move("ready")
        return moved if isinstance(moved, str) else replace(moved, priority=priority)

    def prioritise(self, priority: int) -> Model | str:
        return replace(self, priority=priority) if self.state == "ready" else "PriorityMutationRequiresReady"

    def reschedule(self, due: int) -> Model | str:
        return replace(self, due=due) if self.state == "scheduled" else "NotReschedulable"

    def start(self, attempt: AttemptId) -> Model | str:
        if self.state != "running":
            return "AttemptStartRequiresRunning"
        if self.current is not None:
            return "AttemptAlreadyActive"
        return replace(self, current=attempt, count=self.count + 1)

    def finish(self, attempt: AttemptId) -> Model | str:
        if self.state != "running":
            return "AttemptFinishRequiresRunning"
        if self.current is None:
            return "NoActiveAttempt"
        return replace(self, current=None) if self.current == attempt else "AttemptOwnershipMismatch"


Step = tuple[Callable[[RunInstance], None], Callable[[Model], Model | str]]


def move(state: RunState) -> Step:
    return lambda run: run.transition_to(state), lambda model: model.move(state.value)


def start(attempt: AttemptId) -> Step:
    return lambda run: run.start_attempt(attempt), lambda model: model.start(attempt)


def finish(attempt: AttemptId) -> Step:
    return lambda run: run.finish_attempt(attempt), lambda model: model.finish(attempt)


def promote_with(priority: int) -> Step:
    return lambda run: run.promote_to_ready_with_priority(priority), lambda model: model.promote_with(priority)


def prioritise(priority: int) -> Step:
    return lambda run: run.set_effective_priority(priority), lambda model: model.prioritise(priority)


def reschedule(due: int) -> Step:
    return lambda run: run.reschedule(due), lambda model: model.reschedule(due)


PROMOTE: Step = (RunInstance.promote_to_ready, lambda model: model.move("ready"))
FORWARD = [PROMOTE, move(LEASED), move(RUNNING), start(ATTEMPT_1), finish(ATTEMPT_1)]

REFUSALS: dict[str, type[ActionQueueError]] = {kind.__name__: kind for kind in RunInstanceError.__subclasses__()}
REFUSALS["NotReschedulable"] = NotReschedulable

attempts = st.sampled_from([ATTEMPT_1, ATTEMPT_2])
priorities = st.integers(PRIORITY_MIN, PRIORITY_MAX)
steps = (
    st.sampled_from([*FORWARD, *FORWARD, move(RETRY_WAIT), move(SUSPENDED), move(AWAITING)])
    | states.map(move)
    | attempts.map(start)
    | attempts.map(finish)
    | priorities.map(promote_with)
    | priorities.map(prioritise)
    | st.integers(0, INSTANT_MAX).map(reschedule)
)


@settings(max_examples=256)
@given(story=st.lists(steps, max_size=40), shortcut=st.integers(0, len(FORWARD)))
def test_any_sequence_of_calls_does_what_the_naive_model_does(story: list[Step], shortcut: int) -> None:
    run, model = run_in(SCHEDULED), Model()
    for call, expect in [*FORWARD[:shortcut], *story]:
        expected = expect(model)
        if isinstance(expected, Model):
            call(run)
            model = expected
        else:
            refusal_of(run, call, REFUSALS[expected])

        assert run.state.value == model.state
        assert (run.current_attempt_id, run.attempt_count) == (model.current, model.count)
        assert (run.scheduled_at, run.effective_priority) == (model.due, model.priority)
        assert (run.id, run.task_id, run.created_at, run.last_state_change_at) == (RUN_ID, TASK_ID, 1_000, 1_000)
        assert run.current_attempt_id is None or run.state is RUNNING
