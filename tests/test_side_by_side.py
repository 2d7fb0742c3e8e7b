"""benches/side-by-side: what it computes, on a fake server by a virtual clock. No peers here."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import selectors
import statistics
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")

FOLDER = Path(__file__).resolve().parent.parent / "benches" / "side-by-side"
sys.path.insert(0, str(FOLDER))
try:
    import arrivals
    import columns
    import environments
    import figures
    import load
    import page
    import plots
    import poisons
    import run
    import server
    from figures import Seen
    from peers import Peer
finally:
    sys.path.remove(str(FOLDER))

pytestmark = pytest.mark.timeout(60)
# Where the scheduler may put us: all of them.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# Pinning is of Linux alone, and so is the benchmark.
linux = pytest.mark.skipif(not CORES, reason="pins servers to cores")


class Clock(selectors.DefaultSelector):
    """Time passes when nothing else can happen; then at once."""

    now = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout is None:
            raise AssertionError("nothing will ever happen: the load hangs")
        if not found:
            self.now += timeout
        return found

    def __call__(self):
        return self.now


def on_a_virtual_clock(make):
    """Run `make(clock)`, a coroutine, to its end in virtual time."""
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = clock
    try:
        return loop.run_until_complete(make(clock))
    finally:
        loop.close()


class Lane:
    """A fake server: one request at a time, `service` seconds each."""

    def __init__(self, clock, service=0.01):
        self.clock, self.service, self.lock = clock, service, asyncio.Lock()
        self.broken_until, self.asked = 0.0, 0
        self.stalls = {}

    async def ask(self, text):
        self.asked += 1
        stall = self.stalls.get(self.asked, 0.0)
        async with self.lock:
            await asyncio.sleep(self.service + stall)
        if self.clock() < self.broken_until:
            return 500, b""
        return 200, answer([1.0, 0.0])


def answer(vector):
    return json.dumps({"data": [{"embedding": list(vector)}]}).encode()


def seen(latency, status=200, planned=0.0, sent=None, body=b"", text="a"):
    sent = planned if sent is None else sent
    return Seen(text, planned, planned + latency, status, body, sent)


# --- Arrivals


def test_arrivals_are_the_same_for_a_seed_and_poisson():
    instants = arrivals.poisson(50, 100, 7)
    assert instants == arrivals.poisson(50, 100, 7)
    assert instants != arrivals.poisson(50, 100, 8)
    assert instants == sorted(instants)
    assert 0 < instants[0] < instants[-1] < 100
    assert len(instants) == pytest.approx(5000, rel=0.06)
    gaps = [b - a for a, b in itertools.pairwise(instants)]
    # As long as they scatter, for an exponential distribution; a steady rate has no scatter.
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1, abs=0.08)
    with pytest.raises(ValueError, match="more than 0"):
        arrivals.poisson(0, 1, 1)


def test_texts_are_the_same_for_a_seed_and_of_every_length():
    work = arrivals.texts(2000, 1, 3, 40)
    assert work == arrivals.texts(2000, 1, 3, 40) != arrivals.texts(2000, 2, 3, 40)
    assert {len(text.split()) for text in work} == set(range(3, 41))


def test_texts_that_are_mostly_short_have_every_magnitude():
    lengths = sorted(len(text.split()) for text in arrivals.mostly_short(3000, 1))
    assert lengths[0] == 1
    assert lengths[-1] > 95
    assert lengths[1500] == pytest.approx(10, abs=1), "as many below the root of 100 as above"
    assert arrivals.mostly_short(9, 1) == arrivals.mostly_short(9, 1)


def test_poisons_are_json_so_that_a_server_has_to_look_at_them():
    assert len(poisons.POISONS) >= 5
    for body in poisons.POISONS.values():
        assert "input" in json.loads(body)
    half = json.loads(poisons.POISONS["half a surrogate pair"])["input"][0]
    with pytest.raises(UnicodeEncodeError):
        half.encode()


# --- Figures


def test_percentiles_count_from_the_plan_and_failures_wait_for_ever():
    many = [seen(i / 1000) for i in range(1, 101)]
    assert figures.latencies(many) == {
        "p50_ms": pytest.approx(51),
        "p99_ms": pytest.approx(100),
        "failed": 0,
    }
    late = [seen(2.0, planned=1.0, sent=2.9)]
    assert figures.latencies(late)["p50_ms"] == pytest.approx(2000), "sent late, by its own client"
    found = figures.latencies([*many[:98], seen(0.001, 429), seen(0.001, 0)])
    assert found["p50_ms"] == pytest.approx(51)
    assert found["p99_ms"] is None, "two of a hundred have no answer"
    assert found["failed"] == pytest.approx(0.02)
    with pytest.raises(ValueError, match="no request"):
        figures.latencies([])


def test_throughput_and_goodput_count_good_answers_in_time():
    some = [seen(0.5), seen(1.5), seen(0.5, 429), seen(0.9, planned=9.0), seen(0.9, planned=9.5)]
    assert figures.throughput(some, 10) == pytest.approx(0.3), "one came after the end, one is 429"
    assert figures.goodput(some, 10, within=1.0) == pytest.approx(0.3)
    assert figures.statuses(some) == {"200": 4, "429": 1}
    assert figures.statuses([seen(1, 0)]) == {"none": 1}


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param(answer([1.0, 2e-4]), id="a component differs"),
        pytest.param(answer([0.0, 1.0]), id="another text's answer"),
        pytest.param(answer([1.0]), id="too short"),
        pytest.param(b'{"data": [{"embedding": [1.0, NaN]}]}', id="not a number"),
        pytest.param(b'{"data": []}', id="no embedding"),
        pytest.param(b"<html>", id="no JSON"),
        pytest.param(b'{"data": [{"embedding": ["x", null]}]}', id="no numbers"),
    ],
)
def test_a_planted_wrong_answer_is_counted(planted):
    reference = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 1.0])}
    right = [
        seen(1, body=answer([1.0, 5e-5])),
        seen(1, body=answer([0, 1]), text="b"),
        seen(1, 500, body=planted),
    ]
    clean = figures.wrong_answers(right, reference)
    assert clean["wrong"] == 0
    assert clean["checked"] == 2, "a refusal is no wrong answer"
    assert clean["largest_difference"] == pytest.approx(5e-5)
    found = figures.wrong_answers([*right, seen(1, body=planted)], reference)
    assert (found["wrong"], found["checked"]) == (1, 3)


def test_recovery_is_the_twentieth_good_answer_in_a_row():
    good = [seen(0.1, planned=i / 10) for i in range(60)]
    assert figures.recovery_time(good, 1.0) == pytest.approx(2.0)
    # A failure in between begins the count anew.
    failing = [*good, seen(0.05, 500, planned=2.5)]
    assert figures.recovery_time(failing, 1.0) == pytest.approx(2.6 + 19 / 10 - 1.0)
    assert figures.innocents(failing, 1.0) == 1
    assert figures.innocents(failing, 3.0) == 0
    assert figures.recovery_time(good, 5.0) is None, "only nine came after it"
    # Answers to what was sent before do not count: they may have been computed before.
    early = [seen(5.0, planned=0.5 + i / 100) for i in range(30)]
    assert figures.recovery_time(early, 1.0) is None


# --- Loads, in virtual time


def test_a_closed_loop_keeps_the_lane_full():
    lanes = []

    async def go(clock):
        lanes.append(Lane(clock))
        return await load.closed_loop(lanes[0].ask, ["a"], 8, 10, clock=clock)

    found = on_a_virtual_clock(go)
    assert figures.throughput(found, 10) == pytest.approx(100, rel=0.01)
    assert lanes[0].asked == len(found)


def test_an_open_loop_does_not_leave_out_what_a_stall_delays():
    async def go(clock):
        lane = Lane(clock)
        lane.stalls[50] = 1.0
        instants = [i / 50 for i in range(100)]
        return await load.open_loop(lane.ask, ["a"], instants, 10.0, clock)

    found = on_a_virtual_clock(go)
    # All that came in the second of the stall waited for it, and the hundred take time to catch up.
    assert sum(one.latency > 0.1 for one in found) > 45
    assert figures.latencies(found)["p99_ms"] == pytest.approx(1010, abs=5)
    assert [one.planned for one in found] == [i / 50 for i in range(100)]


def test_a_client_that_is_late_counts_its_own_delay():
    async def go(clock):
        async def ask(text):
            if text == "slow":
                clock.now += 0.5  # the client itself computes: nothing else can run
            await asyncio.sleep(0.01)
            return 200, b""

        return await load.open_loop(ask, ["slow", "b", "b", "b"], [0, 0.1, 0.2, 0.6], 10.0, clock)

    found = on_a_virtual_clock(go)
    assert [round(one.latency, 3) for one in found] == [0.51, 0.41, 0.31, 0.01]


def test_who_gives_up_has_no_answer_and_is_cancelled():
    cancelled = []

    async def go(clock):
        async def ask(text):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                cancelled.append(clock())
                raise
            return 200, b""

        return await load.open_loop(ask, ["a"], [0.0, 0.5], 1.0, clock)

    found = on_a_virtual_clock(go)
    assert [one.status for one in found] == [0, 0]
    assert cancelled == [pytest.approx(1.0), pytest.approx(1.5)]
    assert figures.goodput(found, 1, within=1.0) == 0


def test_settled_waits_for_what_is_left():
    async def go(clock):
        lane = Lane(clock)
        lane.stalls[1] = 7.0
        left = asyncio.create_task(lane.ask("left"))
        await asyncio.sleep(0)
        took = await load.settled(lane.ask, "a", clock=clock)
        await left
        lane.broken_until = 1e9
        return took, await load.settled(lane.ask, "a", limit=5, clock=clock)

    took, never = on_a_virtual_clock(go)
    assert took == pytest.approx(7.05, abs=0.02)
    assert never is None


def recovery(harm, **more):
    """What `load.recovery` says of a lane and of a poison that does `harm(lane)`."""

    async def go(clock):
        lane = Lane(clock)

        async def poison():
            return await harm(lane)

        return await load.recovery(lane.ask, poison, ["a"], clients=4, clock=clock, **more)

    return on_a_virtual_clock(go)


def test_a_refused_poison_harms_nobody():
    async def refuse(lane):
        return 400, b""

    found = recovery(refuse)
    assert found["innocents_failed"] == 0
    assert found["answer"] == "400"
    # Those four that were sent before it, then twenty.
    assert found["recovery_s"] == pytest.approx(0.24, abs=0.03)


def test_a_poison_that_breaks_the_server_for_two_seconds():
    async def breaks(lane):
        lane.broken_until = lane.clock() + 2.0
        return 500, b""

    found = recovery(breaks)
    assert found["recovery_s"] == pytest.approx(2.2, abs=0.05)
    assert found["innocents_failed"] > 20


def test_a_server_that_does_not_recover():
    async def dies(lane):
        lane.broken_until = 1e9
        raise ConnectionResetError

    found = recovery(dies, limit=3.0)
    assert found["recovery_s"] is None
    assert found["answer"] == "connection lost"


def test_requests_that_a_poison_hangs_are_waited_for():
    """The server goes on at once, but four of its requests are never answered."""

    async def go(clock):
        lane, hung = Lane(clock), []

        async def ask(text):
            if 20 <= lane.asked < 24:
                lane.asked += 1
                hung.append(clock())
                await asyncio.Event().wait()
            return await lane.ask(text)

        async def poison():
            return 200, b""

        found = await load.recovery(ask, poison, ["a"], clients=8, limit=5.0, clock=clock)
        return found, hung

    found, hung = on_a_virtual_clock(go)
    assert len(hung) == 4
    assert found["innocents_failed"] == 4
    assert found["recovery_s"] is not None


def test_a_server_that_answers_nothing_is_told():
    async def go(clock):
        lane = Lane(clock, service=1e6)
        return await load.recovery(lane.ask, None, ["a"], limit=1.0, clock=clock)

    with pytest.raises(TimeoutError, match="before the poisoned one"):
        on_a_virtual_clock(go)


# --- Servers and environments


@linux
def test_a_server_that_ends_is_told_with_its_reason(tmp_path):
    command = [sys.executable, "-c", "raise ValueError('no such model: x')"]
    with (
        pytest.raises(environments.Unavailable, match=r"ended with 1: ValueError: no such model"),
        server.running(command, server.free_port(), {}, CORES, tmp_path / "log", 30),
    ):
        pass


@linux
def test_a_server_runs_until_the_block_ends(tmp_path):
    port = server.free_port()
    code = (
        "import http.server as h\n"
        "class Handler(h.BaseHTTPRequestHandler):\n"
        "    def do_POST(self): self.send_response(200); self.end_headers()\n"
        f"h.HTTPServer(('127.0.0.1', {port}), Handler).serve_forever()\n"
    )
    command = [sys.executable, "-c", code]
    with server.running(command, port, {}, CORES, tmp_path / "log", 30) as (pid, seconds):
        assert Path(f"/proc/{pid}").exists()
        assert seconds < 30
    assert not Path(f"/proc/{pid}").exists()


def test_an_environment_is_made_once_for_what_was_asked(tmp_path, monkeypatch):
    made = []

    def make(command):
        made.append(command)
        if command[1] == "venv":
            Path(command[-1]).mkdir(parents=True)

    monkeypatch.setattr(environments, "uv", lambda: "uv")
    monkeypatch.setattr(environments, "_run", make)
    first = environments.environment(tmp_path, "peer", ["a==1"], [])
    assert first == tmp_path / "peer/bin/python"
    assert len(made) == 2
    environments.environment(tmp_path, "peer", ["a==1"], [])
    assert len(made) == 2, "it is there"
    environments.environment(tmp_path, "peer", ["a==2"], ["b==3"])
    assert made[-1][-2:] == ["--override", str(tmp_path / "peer/overrides.txt")]

    def fail(command):
        raise environments.Unavailable("not installed: no such version")

    monkeypatch.setattr(environments, "_run", fail)
    with pytest.raises(environments.Unavailable):
        environments.environment(tmp_path, "other", ["a==9"], [])
    monkeypatch.setattr(environments, "_run", make)
    environments.environment(tmp_path, "other", ["a==9"], [])
    assert made[-1][-1] == "a==9", "what failed is not taken for complete"


@linux
def test_a_peer_that_cannot_run_stays_in_the_results(tmp_path, monkeypatch):
    def missing(place):
        raise environments.Unavailable("not in any registry")

    peers = (
        Peer("onelane serve", lambda place: [], "none", ours=True),
        Peer("gone", missing, "none"),
        Peer("left out", missing, "none"),
    )
    monkeypatch.setattr(run, "PEERS", peers)
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "gone", "--out", str(tmp_path)])
    one = run.Run(run.arguments())

    def serve(peer):
        if peer.ours:
            return {"closed": {"texts_s": 80.0}}
        peer.command(None)
        return {}

    monkeypatch.setattr(one, "serve", serve)
    found = one.servers()
    assert list(found) == ["onelane serve", "gone"]
    assert found["gone"]["unavailable"] == "not in any registry"
    assert one.rate == 80.0


def test_only_names_that_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "infinty"])
    with pytest.raises(SystemExit):
        run.arguments()
    assert "there is no infinty; there are onelane serve" in capsys.readouterr().err


# --- Pages


def figures_of(texts_s, ours=False, recovery_s=0.3, innocents=0, wrong=0, p99=40.0):
    usual = {"recovery_s": 0.2, "innocents_failed": 0, "answer": "", "answered_after_s": 0.0}
    poison = {**usual, "recovery_s": recovery_s, "innocents_failed": innocents, "answer": "500"}
    return {
        "ours": ours,
        "settings": "none",
        "versions": {"a-package": "1.2"},
        "start_s": 3.0,
        "closed": {"texts_s": texts_s, "statuses": {"200": 10}},
        "open": {"50%": {"rate": 50.0, "p50_ms": 10.0, "p99_ms": p99, "failed": 0.0}},
        "overload": {"goodput": texts_s / 2, "of_throughput": 0.5, "statuses": {}},
        "memory": {"before_mb": 100.0, "after_mb": 120.0, "grown_mb": 20.0, "texts": 100,
                   "texts_failed": 0},
        "poison": {"none": usual, "a number": usual, "half": poison},
        "wrong": {"checked": 10, "wrong": wrong, "largest_difference": 1e-6},
    }  # fmt: skip


@pytest.fixture
def results():
    return {
        "title": "one run", "quick": False, "model": "all-MiniLM-L6-v2", "seed": 1, "seconds": 10.0,
        "command": "python3 benches/side-by-side/run.py", "clients": 64, "overload": 2.0,
        "within_s": 1.0, "memory_texts": 100, "shares": {"50%": 50.0},
        "machine": {"cpu": "A <CPU>", "cores": 2, "of": 2, "shared": True, "system": "Linux",
                    "load": 0.1},
        "servers": {
            "onelane serve": figures_of(100.0, ours=True),
            "quick one": figures_of(133.0, p99=None),
            "slow one": figures_of(7.0, recovery_s=None, innocents=9, wrong=3, p99=11.0),
            "absent": {"ours": False, "settings": "none", "unavailable": "no <wheel> | here"},
        },
        "in_process": {
            "lock": {"texts_s": 41.0, "closed_p50_ms": 1.0, "closed_p99_ms": 2.0, "wrong": 0,
                     "checked": 5},
            "gone": {"unavailable": "not built"},
        },
    }  # fmt: skip


def test_who_is_better_than_ours_is_named_with_both_figures(results):
    better = page.ahead_of(results)
    assert better["texts/s"] == ["quick one 133 (ours 100)"]
    assert better["p99 at 50%, ms"] == ["slow one 11 (ours 40)"]
    assert "recovery, s" not in better
    assert "wrong answers" not in better
    # Where ours has no answer, whoever has one is better.
    results["servers"]["onelane serve"]["open"]["50%"]["p99_ms"] = None
    assert page.ahead_of(results)["p99 at 50%, ms"] == ["slow one 11 (ours no answer)"]


def test_the_markdown_page_has_every_server_and_every_reason(results):
    text = page.markdown(results)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") - line.count("\\|") for line in rows[:5]}) == 1, "a whole table"
    for expected in (
        "| slow one | 7 | 10 | 11 | 4 | 50% | never | 9 | 100 | +20 | 3 |",
        "| absent | did not run: no <wheel> \\| here |",
        "- **texts/s**: quick one 133 (ours 100)",
        "worst poison: half, answered with 500",
        "a-package 1.2",
        "| lock | 41 | 1 | 2 | 0 of 5 |",
        "| gone | did not run: not built |",
        "`python3 benches/side-by-side/run.py`, seed 1, 10 s a load",
        "50%: 50 a second",
    ):
        assert expected in text
    assert "A quick run" not in text
    results["quick"] = True
    assert "its figures say nothing" in page.markdown(results)


def test_a_load_that_failed_is_named(results):
    results["servers"]["slow one"]["overload"] = {"error": "ValueError: answered nothing"}
    text = page.markdown(results)
    assert "overload failed: ValueError: answered nothing" in text
    assert "| slow one | 7 | 10 | 11 | none | none | never |" in text


def test_the_html_page_escapes_and_holds_the_plots(results):
    text = page.page(results, "<svg id='plots'></svg>")
    assert "<svg id='plots'></svg>" in text
    assert "no &lt;wheel&gt; | here" in text
    assert "A &lt;CPU&gt;" in text
    assert text.count('<tr class="ours">') == 1
    assert "<b>texts/s</b>" in text
    assert "http" not in text.replace("https://", "http"), "nothing is loaded from elsewhere"


def test_six_lines(results):
    lines = page.six_lines(results)
    assert len(lines) == 6
    assert lines[1] == (
        "- one text a call, 64 clients: 100; best of the others: quick one 133 texts/s"
    )
    assert "wrong answers: 0; best of the others: quick one 0" in lines[4]
    assert "texts/s" in lines[5]
    assert "p99 at 50%, ms" in lines[5]


def test_the_worst_poison_is_the_one_that_is_not_recovered_from(results):
    assert columns.worst_poison(results["servers"]["slow one"])[0] == "half"


def test_plots_have_a_bar_for_each_server_that_ran(results):
    pytest.importorskip("matplotlib")
    drawn = plots.svg(results)
    assert drawn.startswith("<svg")
    for name in ("onelane serve", "quick one", "slow one"):
        assert name in drawn
    assert "absent" not in drawn
    assert "no answer" in drawn
    assert plots.svg(results) == drawn, "the same figures give the same file"
