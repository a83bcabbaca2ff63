"""The queue of jobs: one at a time, one per visitor, a limit of those that wait, and how jobs end."""

from __future__ import annotations

import threading
import warnings

import pytest

from admg.studio.jobs import Done, JobQueue, JobStopped, Waiting


@pytest.fixture
def queue():
    made = JobQueue(seconds=60, waiting=1)
    yield made
    made.close()


def blocked(queue, visitor):
    """Begin a job that runs until the event is set. Return the iterator of its updates and the event."""
    free = threading.Event()

    def function(job):
        job.report("begun")
        while not free.wait(0.01):
            job.check()
        return visitor

    updates = queue.run(visitor, function)
    assert next(updates) in ("begun", Waiting(0), Waiting(1))
    return updates, free


def test_updates_come_in_order_and_the_result_last(queue):
    *updates, done = queue.run("a", lambda job: [job.report(i) for i in range(3)] and "result")
    assert done == Done("result")
    shown = [update for update in updates if not isinstance(update, Waiting)]
    assert shown == sorted(shown) and shown[-1] == 2  # some may be left out, but never the last


def test_jobs_run_one_after_the_other(queue):
    first, free = blocked(queue, "a")
    order = []
    second = queue.run("b", lambda job: order.append("b"))
    assert next(second) == Waiting(1) and not order
    free.set()
    assert [*first][-1] == Done("a")
    assert [*second][-1] == Done(None) and order == ["b"]


def test_a_visitor_has_one_job_and_the_number_of_those_that_wait_is_limited(queue):
    first, free = blocked(queue, "a")
    with pytest.raises(ValueError, match="you already have a job"):
        next(queue.run("a", lambda job: None))
    second = queue.run("b", lambda job: None)
    next(second)
    with pytest.raises(ValueError, match="the studio is busy: 1 job is waiting"):
        next(queue.run("c", lambda job: None))
    free.set()
    assert [*first][-1] == Done("a") and [*second][-1] == Done(None)
    assert [*queue.run("c", lambda job: 3)][-1] == Done(3)


def test_a_job_is_stopped_at_its_next_check_and_the_visitor_can_begin_another(queue):
    updates, _ = blocked(queue, "a")
    assert not queue.stop("b") and queue.stop("a")
    assert [*updates][-1] == Done(None, (), "stopped")
    assert [*queue.run("a", lambda job: 1)][-1] == Done(1)


@pytest.mark.thorough
def test_a_waiting_job_that_is_stopped_never_runs(queue):
    first, free = blocked(queue, "a")
    ran = []
    second = queue.run("b", lambda job: ran.append(1))
    next(second)
    queue.stop("b")
    assert [*second][-1] == Done(None, (), "stopped")
    free.set()
    assert [*first][-1] == Done("a") and not ran


def test_a_job_is_stopped_when_its_visitor_leaves(queue):
    updates, _ = blocked(queue, "a")
    updates.close()
    assert [*queue.run("b", lambda job: 2)][-1] == Done(2)


def test_a_job_that_takes_too_long_is_stopped():
    queue = JobQueue(seconds=0.05)
    updates, _ = blocked(queue, "a")
    assert "limit of this studio" in [*updates][-1].stopped
    queue.close()


def test_errors_are_raised_and_warnings_are_notes(queue):
    def fails(job):
        raise KeyError("no such thing")

    with pytest.raises(KeyError):
        [*queue.run("a", fails)]

    def warns(job):
        for _ in range(2):
            warnings.warn("the images are too dark", stacklevel=1)

    assert [*queue.run("a", warns)][-1] == Done(None, ("the images are too dark",))


def test_closing_stops_what_runs_and_what_waits():
    queue = JobQueue(waiting=1)
    first, _ = blocked(queue, "a")
    second = queue.run("b", lambda job: None)
    next(second)
    queue.close()
    assert [*first][-1].stopped == [*second][-1].stopped == "the studio was shut down"
    with pytest.raises(ValueError, match="shutting down"):
        next(queue.run("c", lambda job: None))


def test_a_stopped_job_raises_at_each_check(queue):
    caught = []

    def function(job):
        job.stop()
        for _ in range(2):
            try:
                job.check()
            except JobStopped:
                caught.append(1)

    assert [*queue.run("a", function)][-1] == Done(None, (), "stopped")
    assert caught == [1, 1]
