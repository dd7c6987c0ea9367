-- The tables of a store, format 3 (format 1 had no entries, format 2 no steps). Column orders are those of core/rows.py (a test compares).
-- Ids are 16 bytes and ordered by time, so that new rows go to the end of their tables.
-- A crc is CRC-32 over the msgpack encoding of the other columns (core/rows.py, sealed).

-- Single values: store_id, epoch, projected_seq, the engine's holder, marks (restored, clean), skews of ids.
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value,
    crc INTEGER NOT NULL
) WITHOUT ROWID;

-- The log: one row a commit, each hash over the hash before it and its events.
CREATE TABLE commits (
    last_seq INTEGER PRIMARY KEY,
    first_seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    version INTEGER NOT NULL,
    hash BLOB NOT NULL,
    crc INTEGER NOT NULL, -- over all but the events, which the hash covers
    events BLOB NOT NULL -- msgpack; a zlib stream of it (it begins with x'78') where that is shorter
);

-- Where the log begins, once it was pruned: the last commit that was dropped.
CREATE TABLE anchors (
    seq INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    at INTEGER NOT NULL,
    crc INTEGER NOT NULL
);

-- Payloads under the task's id, results under the run's. Their digests are in the rows of tasks and runs.
CREATE TABLE blobs (
    id BLOB PRIMARY KEY,
    body BLOB NOT NULL
) WITHOUT ROWID;

-- Replies to commands that came through the inbox.
CREATE TABLE replies (
    id BLOB PRIMARY KEY,
    body BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    crc INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX replies_expiry ON replies (expires_at);
CREATE INDEX replies_refused ON replies (id) WHERE substr(body, 1, 2) = x'9201'; -- see codec.REFUSAL_BEGINS

-- ---------------------------------------------------------------------------------------------------------------------
-- The projection, exact as of meta.projected_seq. A body is msgpack of everything (core/rows.py); beside it stand the
-- columns that look-ups search by. A run's latest attempt is in its body, those before it are in attempts.

CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL
) WITHOUT ROWID;

-- What capabilities keep beside tasks and runs, one row each: schedules, rates (core: State.dirty_entries).
CREATE TABLE entries (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;

-- What retry chains recorded: results of durable steps, waits that are over. Under the id of the chain's first run;
-- written in the commit that records it, like a payload.
CREATE TABLE steps (
    run_id BLOB NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (run_id, name)
) WITHOUT ROWID;

CREATE TABLE tasks (
    id BLOB PRIMARY KEY,
    handler TEXT NOT NULL,
    queue TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    idempotency_key TEXT,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX tasks_finished ON tasks (finished_at); -- the live ones first
CREATE INDEX tasks_key ON tasks (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_handler ON tasks (handler, id);
CREATE INDEX tasks_queue ON tasks (queue, id) WHERE queue <> 'default'; -- free for those who use no queues

CREATE TABLE runs (
    id BLOB PRIMARY KEY,
    task_id BLOB NOT NULL,
    handler TEXT NOT NULL,
    queue TEXT NOT NULL,
    state INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    error_kind TEXT,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX runs_task ON runs (task_id, id);
CREATE INDEX runs_state ON runs (state, id);
CREATE INDEX runs_handler ON runs (handler, state, id);
CREATE INDEX runs_queue ON runs (queue, state, id) WHERE queue <> 'default';
CREATE INDEX runs_error ON runs (error_kind, id) WHERE error_kind IS NOT NULL;

CREATE TABLE attempts (
    run_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    id BLOB NOT NULL,
    fence INTEGER NOT NULL,
    ready_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER,
    outcome INTEGER,
    reason TEXT NOT NULL,
    error BLOB,
    retry_at INTEGER,
    abandoned INTEGER NOT NULL,
    terms BLOB,
    crc INTEGER NOT NULL,
    PRIMARY KEY (run_id, number)
) WITHOUT ROWID;

CREATE TABLE run_tags (
    tag TEXT NOT NULL,
    run_id BLOB NOT NULL,
    PRIMARY KEY (tag, run_id)
) WITHOUT ROWID;
CREATE INDEX run_tags_run ON run_tags (run_id);
