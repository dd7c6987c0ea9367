"""Map and reduce: a batch of tasks, one that takes all their results, and what happens where one of them fails.

    python examples/word_count.py

The graph is one commit. What fails takes with it what waits for its result, in the same commit; a retry brings both back.
"""

from actionqueue import ActionQueue, Retry, RunCanceled, TerminalFailure

queue = ActionQueue("jobs.db")
pages = {"one": "a page", "two": "and another page", "three": None}


@queue.task(retry=Retry(max_attempts=1))
def count_words(name: str) -> int:
    text = pages[name]
    if text is None:
        raise TerminalFailure(f"page {name} is missing")
    return len(text.split())


@queue.task
def add_up(counts: dict[str, int]) -> int:
    return sum(counts.values())


@queue.task
def tell(what: str) -> str:
    return f"{what} is over"


if __name__ == "__main__":
    with queue.running():
        with queue.batch("word count") as batch:
            counts = {name: batch.add(count_words.bind(name)) for name in pages}
            total = batch.add(add_up.bind({name: job.output for name, job in counts.items()}))
            told = batch.on_complete(tell.bind(batch.name))
        try:
            total.result(timeout=10)
        except RunCanceled as canceled:
            print("canceled because of page three:", str(counts["three"].id) in canceled.reason)
        print(told.result(timeout=10))

        pages["three"] = "is here now"
        queue.retry_run(counts["three"].run_id, with_dependents=True)
        counts["three"].result(timeout=10)
        print("words:", total.result(timeout=10))
        print("runs:", dict(sorted(queue.get_batch(batch.id).runs.items())))
