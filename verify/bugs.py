"""The deliberate bugs: each with the check that has to catch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One bug: `old`, which must stand once in `file`, becomes `new`."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    check: str


def test(file: str, name: str = "") -> str:
    return f"cargo test --offline -p onelane --test {file} {name}".strip()


def unit(name: str) -> str:
    return f"cargo test --offline -p onelane --lib {name}"


def python(file: str) -> str:
    return f"python: -m pytest -q -p no:cacheprovider tests/{file}.py"


def loom(name: str) -> str:
    return f"loom: cargo test --offline -p onelane --lib loom_tests::{name}"


MUTANTS = [
    Mutant(
        "a closed queue still accepts",
        "1, 8",
        "queue_state.rs",
        "if self.phase != Phase::Open {",
        "if self.failed.is_some() {",
        loom("submit_against_queue_shutdown"),
    ),
    Mutant(
        "an answer is stored twice",
        "1",
        "response.rs",
        "        if let Some(slot) = self.0.take() {\n            fill(&slot, answer, after);",
        "        if let Some(slot) = self.0.clone() {\n            fill(&slot, answer, after);",
        loom("submit_worker_complete"),
    ),
    Mutant(
        "whoever waits for an answer is not woken",
        "1",
        "response.rs",
        "                after.wake(waker);",
        "                drop(waker);",
        loom("submit_worker_complete"),
    ),
    Mutant(
        "of those who share an event a single sleeper is not woken",
        "1",
        "event.rs",
        "let any = *self.asleep.lock() > 0;",
        "let any = *self.asleep.lock() > 1;",
        loom("sharing_an_event"),
    ),
    Mutant(
        "a thread goes to sleep although its answer is there",
        "1",
        "event.rs",
        "        if is_over() {",
        "        if is_over() && *asleep > 1 {",
        loom("sharing_an_event"),
    ),
    Mutant(
        "a sleeping worker is not woken by a submission",
        "1, 3",
        "inbox.rs",
        "        std::mem::take(&mut self.bell)",
        "        std::mem::take(&mut self.bell) && false",
        loom("submit_worker_complete"),
    ),
    Mutant(
        "a worker goes to sleep on what has just come",
        "1, 3",
        "state.rs",
        "            quiet &= listening.is_some();",
        "            let _ = listening.is_some();",
        loom("submit_worker_complete"),
    ),
    Mutant(
        "the bell is off while a second worker sleeps",
        "3",
        "request_list.rs",
        "        inbox.set_bell(bell);",
        "        inbox.set_bell(bell && false);",
        test("inbox", "each_request_wakes"),
    ),
    Mutant(
        "the time is that of before the inbox was filed",
        "3",
        "state.rs",
        "        let now = clock.now();\n        // CORR",
        "        let now = clock.now() - Duration::from_micros(50);\n        // CORR",
        loom("two_requests_and_two_workers"),
    ),
    Mutant(
        "an inbox stays open when its queue closes",
        "1, 8",
        "state.rs",
        "set_open(false);\n        queue.line.dismiss(after);\n        self.file",
        "set_open(true);\n        queue.line.dismiss(after);\n        self.file",
        loom("submit_against_queue_shutdown"),
    ),
    Mutant(
        "an inbox stays open past those in line",
        "6",
        "queue_state.rs",
        "            self.list.set_open(false);\n",
        "",
        test("line"),
    ),
    Mutant(
        "a cancelled request keeps its room",
        "6, 7",
        "request_list.rs",
        "        self.free(1, entry.cost);\n",
        "",
        test("simulation"),
    ),
    Mutant(
        "a task in line is woken by what it gave up",
        "6",
        "submit.rs",
        "            Poll::Pending => {\n                pending.abandon();\n",
        "            Poll::Pending => {\n",
        test("line"),
    ),
    Mutant(
        "a batch straight from the inbox mixes priorities",
        "6",
        "request_list.rs",
        "                    && other.class == first.class\n",
        "",
        test("simulation"),
    ),
    Mutant(
        "a batch straight from the inbox mixes keys",
        "2",
        "request_list.rs",
        "                    && (other.hash == first.hash && other.key == first.key)",
        "",
        test("simulation"),
    ),
    Mutant(
        "a batch straight from the inbox forgets deadlines",
        "7",
        "request_list.rs",
        "other.deadline.is_none()",
        "true",
        test("simulation"),
    ),
    Mutant(
        "a batch straight from the inbox is larger than fits",
        "5",
        "request_list.rs",
        "(alike && accepted.len() <= limit)",
        "(alike && limit > 0)",
        test("simulation"),
    ),
    Mutant(
        "a batch straight from the inbox costs too much",
        "2",
        "request_list.rs",
        "(cost <= self.max_batch_cost).then_some(one_batch)",
        "Some(one_batch)",
        test("simulation"),
    ),
    Mutant(
        "a batch straight from the inbox keeps its room",
        "6",
        "request_list.rs",
        "        self.free(batch.len(), batch.cost());\n        batch.group",
        "        batch.group",
        test("simulation"),
    ),
    Mutant(
        "who finds no room in the inbox is not told what is free",
        "6",
        "request_list.rs",
        "        inbox.take_back(&mut self.freed);\n        inbox.reserve",
        "        inbox.reserve",
        test("backpressure"),
    ),
    Mutant(
        "a filed request has the number of another",
        "7",
        "inbox.rs",
        "        self.number - empty.len() as u64\n",
        "        self.number\n",
        test("simulation"),
    ),
    Mutant(
        "of two tasks of a batch one is not woken",
        "1",
        "after.rs",
        "            self.wakers.extend(last);",
        "            drop(last);",
        test("delivery", "each_task_of_a_batch"),
    ),
    Mutant(
        "a batch is counted with the one whose memory it has",
        "10",
        "batch.rs",
        "        self.tally = Tally::default();\n",
        "",
        test("simulation"),
    ),
    Mutant(
        "a batch that is used again keeps its numbers",
        "9, 10",
        "batch.rs",
        "                numbers.clear();\n",
        "",
        unit("used_again"),
    ),
    Mutant(
        "whoever cancels does not look into the inbox",
        "7",
        "state.rs",
        "        self.file(id, after);\n        self.dismiss(id, request.id(), error, after)",
        "        self.dismiss(id, request.id(), error, after)",
        test("cancel"),
    ),
    Mutant(
        "one worker is woken where all are needed",
        "8",
        "state.rs",
        "        if self.stopping {\n            self.workers.wake_all(after);",
        "        if self.stopping {\n            self.workers.wake_one(after);",
        test("shutdown", "all_workers_end"),
    ),
    Mutant(
        "one worker drops its engine where all have to",
        "2, 8",
        "state.rs",
        "        for worker in 0..workers {\n            self.workers.send(",
        "        for worker in 0..1 {\n            self.workers.send(",
        loom("a_group_and_two_workers"),
    ),
    Mutant(
        "the call for a second worker is not passed on",
        "3",
        "state.rs",
        "                if self.workers.any_asleep() && matches!",
        "                if !self.workers.any_asleep() && matches!",
        loom("two_requests_and_two_workers"),
    ),
    Mutant(
        "a dispatch does not tell the first in line",
        "6",
        "state.rs",
        "        queue.line.wake_first(after);\n        self.virtual_now",
        "        self.virtual_now",
        loom("admission_against_dispatch"),
    ),
    Mutant(
        "whoever leaves the line does not tell the next",
        "6",
        "queue_state.rs",
        "        self.line.leave(turn, after);\n        self.line.wake_first(after);\n",
        "        self.line.leave(turn, after);\n",
        loom("leaving_the_line"),
    ),
    Mutant(
        "room is taken past those in line",
        "6",
        "queue_state.rs",
        "if self.line.is_first(turn) && self.list",
        "if self.list",
        test("line"),
    ),
    Mutant(
        "the line does not age",
        "6",
        "line.rs",
        "self.ageing.saturating_mul(lifts)",
        "self.ageing.saturating_mul(lifts * 1_000)",
        test("line", "the_line_goes"),
    ),
    Mutant(
        "the line is first come, first served whatever the priority",
        "6",
        "line.rs",
        "let lifts = class.index() as u32;",
        "let lifts = 0 * class.index() as u32;",
        test("line", "the_line_goes"),
    ),
    Mutant(
        "a group is as urgent as its most urgent request",
        "6",
        "submit.rs",
        "request.priority).max()",
        "request.priority).min()",
        test("line", "a_group_does_not"),
    ),
    Mutant(
        "a group is accepted when a part fits",
        "6",
        "submit.rs",
        "let need = Need { requests: count, cost: total };",
        "let need = Need { requests: count.min(1), cost: 0 };",
        test("simulation"),
    ),
    Mutant(
        "last in, first out",
        "4",
        "fifo.rs",
        "        self.head\n    }",
        "        self.tail\n    }",
        test("simulation"),
    ),
    Mutant(
        "ageing is off",
        "4",
        "policy.rs",
        "let lifts = waited.as_nanos() / ageing.as_nanos().max(1);",
        "let lifts = waited.as_nanos() / u128::MAX.max(ageing.as_nanos());",
        test("simulation"),
    ),
    Mutant(
        "weights are ignored",
        "4",
        "queue_state.rs",
        "self.virtual_time += service / self.config.weight;",
        "self.virtual_time += service;",
        test("ordering", "queues_share"),
    ),
    Mutant(
        "a cancelled request is computed",
        "7",
        "response.rs",
        "            state.give_up(queue, request, RequestError::Cancelled, after);",
        "            let _ = (state, queue, request, after);",
        test("simulation"),
    ),
    Mutant(
        "a deadline counts from when the line has let a request in",
        "7",
        "submit.rs",
        "let since = place.as_ref().map(|place| place.since);",
        "let since = None;",
        test("line", "a_deadline_runs"),
    ),
    Mutant(
        "the last in line is told of room",
        "6",
        "line.rs",
        "if let Some((_, waker)) = self.waiting.first_key_value() {\n            after.wake",
        "if let Some((_, waker)) = self.waiting.last_key_value() {\n            after.wake",
        test("simulation"),
    ),
    Mutant(
        "deadlines are not looked at before a batch is taken",
        "7",
        "state.rs",
        "if first_deadline.is_some_and(|deadline| deadline <= now) {",
        "if false {",
        test("simulation"),
    ),
    Mutant(
        "a worker goes to sleep on an errand that it gave itself",
        "8",
        "state.rs",
        "            self.expire(now, after);\n        }\n        if let Some(errand) = "
        "self.workers.next_errand(worker) {\n            return Step::Errand(errand);"
        "\n        }\n        let until",
        "        }\n        if let Some(errand) = self.workers.next_errand(worker) {\n"
        "            return Step::Errand(errand);\n        }\n        self.expire(now, after);"
        "\n        let until",
        loom("deadline_against_shutdown"),
    ),
    Mutant(
        "bisection loses the request in the middle",
        "1, 5",
        "batch.rs",
        "parts.push(middle..part.end);",
        "parts.push(middle + 1..part.end);",
        test("simulation"),
    ),
    Mutant(
        "a batch's answers come in the wrong order",
        "1",
        "batch.rs",
        "self.answers[part].iter_mut().zip(outputs)",
        "self.answers[part].iter_mut().rev().zip(outputs)",
        test("simulation"),
    ),
    Mutant(
        "the memory ceiling is forgotten",
        "5",
        "request_list.rs",
        "        if let Some(ceiling) = ceiling {\n            group.ceiling",
        "        if let Some(ceiling) = ceiling.filter(|_| false) {\n            group.ceiling",
        test("failure", "out_of_memory"),
    ),
    Mutant(
        "an engine that panicked is used again",
        "5",
        "batch.rs",
        "                let lost = engine.take();\n                let _ = contain(|| drop(lost));"
        "\n                self.tally.lost_engine = true;",
        "                self.tally.lost_engine = true;",
        test("failure", "a_panic_fails_its_request_alone"),
    ),
    Mutant(
        "an engine outlives its queue",
        "2, 8",
        "worker.rs",
        "        let engine = self.engines.borrow_mut().remove(&queue);\n"
        "        let _ = contain(|| drop(engine));",
        "        let engine = self.engines.borrow_mut().remove(&queue);\n"
        "        std::mem::forget(engine);",
        test("shutdown", "an_engine_lives_on_the_worker"),
    ),
    Mutant(
        "a shutdown returns before the engine is gone",
        "8",
        "state.rs",
        "                remember(&mut queue.leaving, waker);\n                false",
        "                remember(&mut queue.leaving, waker);\n                true",
        loom("submit_against_queue_shutdown"),
    ),
    Mutant(
        "an abort leaves what waits",
        "8",
        "state.rs",
        "        if abort {",
        "        if abort && queue_is_never_aborted() {",
        test("shutdown", "drain_runs_what_was_accepted"),
    ),
    Mutant(
        "a request's handle is not told its seat",
        "4",
        "request_list.rs",
        "        responder.sits_at(seat);",
        "        responder.sits_at(seat / 2);",
        test("simulation"),
    ),
    Mutant(
        "whoever delivers is not woken",
        "1",
        "delivery.rs",
        "        let asleep = on_desk.asleep.take();",
        "        let asleep: Option<Waker> = None;",
        loom("delivery_beside_the_worker"),
    ),
    Mutant(
        "a batch that lies ready is forgotten for the next",
        "1",
        "delivery.rs",
        "        if on_desk.next.is_some() {",
        "        if on_desk.closed {",
        test("delivery", "the_worker_goes_on"),
    ),
    Mutant(
        "a shutdown does not wait for the delivery",
        "8",
        "queue_state.rs",
        "        self.list.len() == 0 && self.running.is_empty()\n",
        "        self.has_caught_up()\n",
        test("delivery", "a_shutdown_waits"),
    ),
    Mutant(
        "a delivery thread drops the inputs",
        "2",
        "delivery.rs",
        "        dispatched.batch.drop_inputs();\n",
        "        dispatched.number += 0;\n",
        test("delivery", "inputs"),
    ),
    Mutant(
        "whoever delivers waits for the end that waits for it",
        "8, 9",
        "worker.rs",
        "        Self::current(shared).is_some() || delivers_for(shared)",
        "        Self::current(shared).is_some()",
        test("delivery", "who_delivers"),
    ),
    Mutant(
        "a queue is made with errands for workers that have ended",
        "1, 8",
        "executor.rs",
        "            if state.is_stopping() {\n"
        "                return Err(BuildError::Closed(self.shared.device.clone()));",
        "            if false {\n"
        "                return Err(BuildError::Closed(self.shared.device.clone()));",
        loom("new_against_shutdown"),
    ),
    Mutant(
        "a worker that dies leaves what waits",
        "1",
        "state.rs",
        "        if !(self.stopping && self.queues.is_empty()) {",
        "        if self.alive == usize::MAX {",
        test("worker_death", "every_handle"),
    ),
    Mutant(
        "waiting for one's own engine is not refused",
        "9",
        "worker.rs",
        "            Place::Waiting if self.is_engine_busy(queue) => Help::Stuck,\n",
        "",
        test("reentrancy"),
    ),
    Mutant(
        "a stall is not told",
        "10",
        "queue_state.rs",
        "Some(running_for) if running_for >= self.config.stall_after => {",
        "Some(running_for) if running_for >= Duration::MAX => {",
        test("truth", "a_batch_that_runs_too_long"),
    ),
    Mutant(
        "a worker does not synchronise before it hands a response over",
        "2",
        "python/onelane/_devices.py",
        "            torch.mps.synchronize()",
        "            pass",
        python("test_synchronised"),
    ),
]

# Faults of the protocol itself, in the specification: its own switches put them in.
SPEC = [
    ("check-then-push (the original's bug)", "1, 8", "check-then-push"),
    ("a batch is answered, then run again", "1", "answered-twice"),
    ("a worker ends though something waits", "8", "drain-forgets"),
    ("a worker goes to sleep on its own errand", "8", "sleeps-on-errand"),
    ("a group is let in in parts", "6", "group-in-parts"),
    ("a cancelled request stays in its list", "7", "cancelled-stays"),
]
