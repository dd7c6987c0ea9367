"""The mutations that our tests must notice: each makes the engine break a promise in one small place.

A line says what is broken, where, which text becomes which other one, and which tests are to notice. The text must be
there exactly once, so that a change of the code that makes a mutation meaningless fails loudly (``tests/test_mutations``).
"""

from __future__ import annotations

from dataclasses import dataclass

CORE = "tests/core"
ENGINE = "tests/engine"
STORE = "tests/store"
WORLD = "tests/scenarios"
LIMITS = "tests/core/test_limits.py"
SCHEDULES = "tests/core/test_schedules.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One broken promise. ``tests`` are run until the first one fails."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"src/actionqueue/{file}", old, new, tests or (CORE,))


MUTATIONS: tuple[Mutation, ...] = (
    # --- attempts: fences, caps, outcomes
    _of("fence not checked", "core/attempts.py", " or attempt.fence != report.fence:", ":", CORE, ENGINE),
    _of(
        "attempt's id not checked",
        "core/attempts.py",
        " or attempt.id != report.attempt_id or attempt.fence",
        " or attempt.fence",
        CORE,
        ENGINE,
    ),
    _of("retry not counted", "core/attempts.py", "run.failure_count += 1", "run.failure_count += 0"),
    _of("loss not counted", "core/attempts.py", "run.lost_count += 1", "run.lost_count += 0"),
    _of(
        "one attempt too many",
        "core/attempts.py",
        "failures >= run.task.max_attempts",
        "failures > run.task.max_attempts",
    ),
    _of(
        "one loss too many",
        "core/attempts.py",
        "losses > attempt.terms.max_lost",
        "losses > attempt.terms.max_lost + 1",
    ),
    _of("on_lost ignored", "core/attempts.py", " or attempt.terms.fails_when_lost(run.task.max_attempts):", ":"),
    _of("backoff not waited for", "core/attempts.py", "min(now + delay_us, SUBMIT_INSTANT_MAX)", "now"),
    _of(
        "a canceled run tried again",
        "core/attempts.py",
        "if run.cancel is not None or outcome is Outcome.CANCELED:",
        "if outcome is Outcome.CANCELED:",
    ),
    _of(
        "lost attempts left open",
        "core/attempts.py",
        "        if attempt is not None:\n            draw =",
        "        if attempt is not None and attempt.number > 1:\n            draw =",
    ),
    _of("a terminal failure retried", "core/attempts.py", "if report.terminal or failures", "if failures"),
    _of("an ended task kept", "core/attempts.py", "    del state.tasks[task.id]\n", "    pass\n"),
    _of(
        "an ended key kept",
        "core/attempts.py",
        "            del state.keys[extra.key]",
        "            pass",
    ),
    # --- places: slots, wake-ups, order
    _of("a queue's slot never released", "core/places.py", "        del queue.running[run_id]\n", ""),
    _of(
        "an executor's slot never taken",
        "core/places.py",
        "            lane.executor.running[run_id] = run\n",
        "            pass\n",
    ),
    _of(
        "a wake-up dropped",
        "core/places.py",
        "        if executor is not None and executor.waiting:\n            self.wake(executor)\n",
        "",
    ),
    _of("a queue's wake-up dropped", "core/places.py", "        if queue.waiting:\n            self.wake(queue)\n", ""),
    _of(
        "a queue's bound ignored",
        "core/places.py",
        "if queue.capacity is not None and len(queue.running) >= queue.capacity:",
        "if False:",
    ),
    _of("a pause ignored", "core/places.py", "        if lane.pause is not None:\n            return lane.pause\n", ""),
    _of(
        "the engine's pause ignored",
        "core/places.py",
        "        if self.engine_pause is not None:\n            return None\n        while True:",
        "        while True:",
    ),
    _of(
        "what a pause held forgotten",
        "core/places.py",
        "            for run in (held or {}).values():\n                self.enter_timer(run, run.until)\n",
        "",
    ),
    _of(
        "priorities upside down",
        "core/ready.py",
        "rank, order = -run._effective_priority, run.order",
        "rank, order = run._effective_priority, run.order",
    ),
    _of(
        "last in, first out",
        "core/ready.py",
        "            last.behind, run.before = run, last\n            level.last = run\n",
        "            level.first.before, run.behind = run, level.first\n            level.first = run\n",
    ),
    _of("two suspects at once", "core/places.py", "if head.lost_streak >= 2 and self.on_trial:", "if False:"),
    _of(
        "a deadline that never passes",
        "core/timers.py",
        "return run.where is not Where.NOWHERE and run.attempt_count == 0",
        "return False",
    ),
    _of(
        "due a moment later",
        "core/timers.py",
        "heap[0][0] <= now and len(found) < most:\n            entry = heappop(heap)\n            if _is_timed",
        "heap[0][0] < now and len(found) < most:\n            entry = heappop(heap)\n            if _is_timed",
    ),
    # --- limits: keys, rates, holds, aging, pauses of tasks
    _of(
        "a key never given back",
        "core/attempts.py",
        "    if lane.keys:\n        state.places.release_keys(run)\n",
        "",
        LIMITS,
    ),
    _of(
        "a key given back to nobody",
        "core/places.py",
        "                    if twin.waiting:\n                        self.wake(twin)\n",
        "                    pass\n",
        LIMITS,
    ),
    _of(
        "one more than the capacity of a key",
        "core/limits.py",
        "get(need.key, need.capacity)",
        "get(need.key, need.capacity + 1)",
        LIMITS,
    ),
    _of(
        "a key let go over a state that it is held over",
        "core/attempts.py",
        "if run.task.lane.keys and not holds_keys(run):",
        "if run.task.lane.keys:",
        LIMITS,
    ),
    _of(
        "a key kept over a state that it is not held over",
        "core/attempts.py",
        "if run.task.lane.keys and not holds_keys(run):",
        "if False:",
        LIMITS,
    ),
    _of(
        "a held key forgotten by a restart",
        "core/loading.py",
        "    if run.task.lane.keys and holds_keys(run):\n        places.hold_keys(run)\n",
        "",
        LIMITS,
    ),
    _of(
        "only the first of several keys asked for",
        "core/places.py",
        "for slots in lane.keys:\n            if not",
        "for slots in lane.keys[:1]:\n            if not",
        LIMITS,
    ),
    _of(
        "one token too many",
        "core/limits.py",
        "slack_us=(need.burst - 1) * interval_us",
        "slack_us=need.burst * interval_us",
        LIMITS,
    ),
    _of(
        "a token not taken", "core/limits.py", "max(meter.tat, now) + bucket.interval_us", "max(meter.tat, now)", LIMITS
    ),
    _of(
        "unused tokens saved for ever",
        "core/limits.py",
        "max(meter.tat, now) + bucket",
        "(meter.tat or now) + bucket",
        LIMITS,
    ),
    _of(
        "a rate forgotten by a restart",
        "core/loading.py",
        "            state.places.limits.restore(key, packed)\n",
        "            pass\n",
        LIMITS,
    ),
    _of(
        "waiting makes a run less urgent",
        "core/ready.py",
        "return run.last_state_change_at - run",
        "return -run.last_state_change_at - run",
        LIMITS,
    ),
    _of(
        "the pause of a task lost at a restart",
        "core/loading.py",
        "        lane = limited_lane(state, lane, extra.options, id)\n",
        "        lane = limited_lane(state, lane, extra.options, bytes(16))\n",
        LIMITS,
    ),
    _of(
        "the pause of a task that outlives it",
        "core/attempts.py",
        '        del state.pauses["task", task.id.hex()]\n',
        "        pass\n",
        LIMITS,
    ),
    _of(
        "a handler's concurrency ignored",
        "core/places.py",
        "if lane.bound is not None and not lane.bound.free:",
        "if False:",
        LIMITS,
    ),
    # --- schedules: occurrences, misfire, overlap, names
    _of(
        "the next occurrence never derived",
        "core/upcoming.py",
        "is derived however many runs are live\n    looked_at(state, schedule)\n",
        "is derived however many runs are live\n",
        SCHEDULES,
    ),
    _of(
        "skipped occurrences not accounted for",
        "core/schedules.py",
        "    schedule.index += event.count\n",
        "",
        SCHEDULES,
    ),
    _of(
        "the window of catching up ignored",
        "core/occurrences.py",
        "if window_us is None or schedule.cursor >= wall - window_us:",
        "if True:",
        SCHEDULES,
    ),
    _of(
        "late occurrences run though they are to be skipped",
        "core/occurrences.py",
        'if rule.misfire == "skip":',
        'if rule.misfire == "skipped":',
        SCHEDULES,
    ),
    _of(
        "overlap never looked at",
        "core/occurrences.py",
        'if rule.overlap == "allow" or not (earlier := earlier_runs(run)):',
        "if rule.overlap or not (earlier := earlier_runs(run)):",
        SCHEDULES,
    ),
    _of(
        "a queue of occurrences without an end",
        "core/occurrences.py",
        "if len(schedule.waiting) >= QUEUED_MAX:",
        "if False:",
        SCHEDULES,
    ),
    _of(
        "a handler's absence piles occurrences up",
        "core/occurrences.py",
        "if run.task.lane.executor is None and _waits_for_handler(run):",
        "if False:",
        SCHEDULES,
    ),
    _of(
        "all that was missed derived at once",
        "core/occurrences.py",
        "is_full = task.open_count >= CATCH_UP_RUNS_MAX",
        "is_full = False",
        SCHEDULES,
    ),
    _of(
        "a schedule begun again at each start",
        "core/schedules.py",
        "if standing is not None and (standing.content == item.content or standing.handler != item.handler):",
        "if standing is not None and standing.handler != item.handler:",
        SCHEDULES,
    ),
    _of(
        "a schedule that is declared no more goes on",
        "core/schedules.py",
        'if current.origin == "code" and current.handler in handlers and current.name not in declared',
        "if False",
        SCHEDULES,
    ),
    _of(
        "an occurrence that waits its turn forgotten at a restart",
        "core/loading.py",
        "        let_come(state, schedule)\n",
        "        schedule.waiting.clear()\n",
        CORE,
    ),
    _of(
        "cron does not follow the wall clock",
        "core/upcoming.py",
        "        state.places.enter_timer(run, max(0, run.until - change))\n",
        "        state.places.enter_timer(run, run.until)\n",
        CORE,
    ),
    _of(
        "a finished schedule forgets its name",
        "core/upcoming.py",
        "    if not schedule.is_named:\n",
        "    if True:\n",
        SCHEDULES,
    ),
    _of(
        "jitter without an end",
        "core/submission.py",
        ' "big") >> 8 * JITTER_BYTES)',
        ' "big") >> 7 * JITTER_BYTES)',
        SCHEDULES,
    ),
    # --- submissions and controls
    _of(
        "any content is the same",
        "core/submission.py",
        "            return self.content == item.content\n",
        "            return True\n",
    ),
    _of("a key forgotten", "core/submission.py", "        state.keys[rare.key] = task\n", "        pass\n"),
    _of(
        "live runs without bound",
        "core/submission.py",
        "if events and len(state.runs) + len(events) > live_runs_max:",
        "if False:",
    ),
    _of(
        "a completed run retried",
        "core/submission.py",
        "if known.state not in (CODE_OF[RunState.FAILED], CODE_OF[RunState.CANCELED]):",
        "if False:",
    ),
    _of(
        "a retry with a token of its own",
        "core/submission.py",
        "run.lineage = Lineage(event.retry_of, event.token, event.by)",
        "run.lineage = Lineage(event.retry_of, event.run_id, event.by)",
    ),
    _of(
        "one edge too many",
        "core/run.py",
        "RunState.COMPLETED: frozenset(),",
        "RunState.COMPLETED: frozenset({RunState.READY}),",
    ),
    _of(
        "a cancel that forgets the others",
        "core/control.py",
        "    for run in task.live_runs():\n        if _is_news",
        "    for run in task.live_runs()[:1]:\n        if _is_news",
    ),
    # --- rows and recovery
    _of(
        "projection off by one",
        "core/rows.py",
        "return Projection(state.last_seq, tasks",
        "return Projection(state.last_seq - 1, tasks",
        ENGINE,
        STORE,
        CORE,
    ),
    _of(
        "a touched task not projected",
        "core/rows.py",
        "tasks = [task_row(task) for task in state.dirty_tasks.values()]",
        "tasks = [task_row(task) for task in list(state.dirty_tasks.values())[1:]]",
        CORE,
        STORE,
    ),
    _of(
        "a live row's checksum not checked",
        "core/loading.py",
        "    if not sound or not agree or body.error_kind != stored[7]:",
        "    if not agree or body.error_kind != stored[7]:",
        CORE,
        STORE,
    ),
    _of(
        "rows lost unnoticed",
        "core/loading.py",
        "    if found != state.counts[:FIRST_TERMINAL]:",
        "    if False:",
        CORE,
        STORE,
    ),
    _of(
        "due instants restarted",
        "core/loading.py",
        "        places.enter_timer(run, run.until)",
        "        places.enter_timer(run, run.until + 1)",
    ),
    # --- the writer
    _of(
        "reply before commit",
        "engine/writer.py",
        "            turn.settled.append((post.ticket, reply))\n        if post.command_id",
        "            post.ticket.settle(reply)\n        if post.command_id",
        ENGINE,
    ),
    _of(
        "an inbox command's reply not recorded",
        "engine/writer.py",
        "            turn.replies.append((post.command_id, reply))\n",
        "            pass\n",
        ENGINE,
    ),
    _of(
        "facts that are out of date believed",
        "engine/writer.py",
        "            if post.failure is None and self._is_outdated(post):\n",
        "            if False:\n",
        ENGINE,
    ),
    _of(
        "what ended forgotten too soon",
        "engine/writer.py",
        "rotate_recent(keep=self._looking_up > 0)",
        "rotate_recent(keep=False)",
        ENGINE,
    ),
    _of(
        "payloads not stored",
        "engine/writer.py",
        "        blobs.append((item.task_id, body))\n",
        "        pass\n",
        ENGINE,
    ),
    _of(
        "a timeout not kept",
        "engine/stopping.py",
        "        while heap and not self._is_current(heap[0][2]):",
        "        while heap:",
        ENGINE,
        WORLD,
    ),
    _of(
        "damaged arguments run",
        "engine/effects.py",
        "if isinstance(body, bytes) and digest(body) == assignment.payload_digest:",
        "if isinstance(body, bytes):",
        ENGINE,
    ),
    _of(
        "an inbox row decided twice",
        "engine/inbox.py",
        "                self._in_flight.add(row[1])\n                self._post(*row)\n",
        "                self._post(*row)\n",
        ENGINE,
    ),
    _of(
        "decided before, decided again",
        "engine/inbox.py",
        "                if reader.reply(row[1]) is None:",
        "                if True:",
        ENGINE,
        "tests/process/test_inbox.py",
    ),
    _of(
        "given up and begun all the same",
        "engine/effects.py",
        "            assignments[:] = [each for each in assignments if each.attempt_id not in given_up]\n        executors",
        "            assignments[:] = list(assignments)\n        executors",
        ENGINE,
    ),
    _of(
        "a fenced engine writes on",
        "engine/committer.py",
        "failure = self._failure or self._engine.fenced",
        "failure = self._failure",
        ENGINE,
        "tests/simulation",
    ),
    # --- the store
    _of("epoch ignored", "store/sqlite.py", "        if epoch != batch.epoch:", "        if False:", STORE),
    _of(
        "a gap in the log accepted",
        "store/sqlite.py",
        "        if (last_seq or 0) != batch.expected_seq or",
        "        if",
        STORE,
    ),
    _of(
        "commits not synced",
        "store/sqlite_connection.py",
        'connection.execute("PRAGMA synchronous = FULL")',
        'connection.execute("PRAGMA synchronous = NORMAL")',
        STORE,
        "tests/process/test_durability.py",
    ),
    _of(
        "a chain of single links",
        "store/codec.py",
        "return blake2b(previous + body, digest_size=32).digest()",
        "return blake2b(body, digest_size=32).digest()",
        CORE,
        STORE,
        "tests/test_verify.py",
    ),
    _of(
        "a damaged WAL opened",
        "store/wal_scan.py",
        "    if damage is None:\n        return report\n    raise StoreDamaged(",
        "    if damage is None or path.exists():\n        return report\n    raise StoreDamaged(",
        STORE,
        "tests/process/test_damage.py",
    ),
    _of(
        "two engines on one store",
        "store/sqlite.py",
        "        self._lock = StoreLock.acquire(self._path)\n",
        "        self._lock = StoreLock.acquire(self._path.with_name(str(id(self))))\n",
        STORE,
    ),
    _of(
        "a restored backup not paused",
        "engine/engine.py",
        "        if opened.restored:\n",
        "        if False:\n",
        STORE,
        "tests/process",
        "tests/test_administer.py",
    ),
    _of(
        "an unknown outcome tried again",
        "store/sqlite.py",
        "if primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):",
        "if primary_code(error):",
        STORE,
    ),
    _of("the newest commit pruned", "store/sqlite_log.py", "else rows[:-1]:", "else rows:", STORE),
    _of("the log pruned past the tables", "store/sqlite.py", "min(before_seq, projected_seq + 1)", "before_seq", STORE),
    # --- forecasts
    _of(
        "what has run already forgotten",
        "core/rehearsal.py",
        "at = attempt.started_at + takes_us(run) if",
        "at = now + takes_us(run) if",
        "tests/core/test_forecast.py",
    ),
    _of(
        "time not let pass in a rehearsal",
        "core/rehearsal.py",
        "return end if timer is None or end < timer else timer",
        "return end",
        "tests/core/test_forecast.py",
    ),
    _of(
        "an estimate called exact",
        "core/known.py",
        "exact = all(run.id_bytes not in uncertain for _, run in burst)",
        "exact = True",
        "tests/test_forecast.py",
    ),
    _of(
        "a time that does not exist not told",
        "core/clock_notes.py",
        "if times.is_fixed and offset_s > before_s and",
        "if False and",
        "tests/core/test_forecast.py",
        "tests/test_forecast.py",
    ),
    _of(
        "the longest duration for the typical one",
        "core/foretelling.py",
        "sorted(durations)[(len(durations) - 1) // 2]",
        "sorted(durations)[-1]",
        "tests/core/test_forecast.py",
    ),
    _of(
        "a pause of a schedule not told",
        "core/known.py",
        'held_by="" if run is None else held_by(state, run),',
        'held_by="",',
        "tests/core/test_forecast.py",
    ),
    # --- executors
    _of(
        "a swallowed control exception believed",
        "executors/endings.py",
        "if control.misused is not None:",
        "if False:",
        "tests/executors",
    ),
    _of(
        "too large a result kept",
        "executors/endings.py",
        "if len(body) > a.runnable.result_bytes_max:",
        "if False:",
        "tests/executors",
    ),
    # --- explain
    _of(
        "a run behind others told to wait for them",
        "core/why.py",
        "    if isinstance(blocker, Slots):\n        return _taken(blocker)\n",
        "    if isinstance(blocker, Slots) and not ahead_of(places, run):\n        return _taken(blocker)\n",
        "tests/core/test_explain.py",
    ),
    _of(
        "a pause explained after the handler",
        "core/why.py",
        "    if pause is not None:\n",
        "    if pause is not None and lane.executor is not None:\n",
        "tests/core/test_explain.py",
    ),
    _of(
        "what is due under the engine's pause said not to be due",
        "core/why.py",
        "case Where.TIMER if run.until > now:",
        "case Where.TIMER:",
        "tests/core/test_explain.py",
    ),
    _of(
        "one end said to make room where several must",
        "core/reasons.py",
        "max(1, taken - capacity + 1)",
        "1",
        "tests/core/test_explain.py",
    ),
    _of(
        "one earlier occurrence said to be enough",
        "core/reasons.py",
        "return RunsEnd(previous, live)",
        "return RunsEnd(previous, 1)",
        "tests/core/test_explain.py",
    ),
    _of(
        "a run explained again and again",
        "core/explain.py",
        " and id.bytes not in told:",
        ":",
        "tests/core/test_explain.py",
    ),
    _of(
        "a token promised an interval too late",
        "core/why.py",
        "shown_datetime(slots.next_at)",
        "shown_datetime(slots.meter.tat)",
        "tests/core/test_explain.py",
    ),
    _of(
        "a store without an engine explained as if one ran",
        "explaining.py",
        "return None if run is None else without_engine(state, explain(state, run, now))",
        "return None if run is None else explain(state, run, now)",
        "tests/test_explain.py",
    ),
)
