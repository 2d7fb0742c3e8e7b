"""What is left behind by isolated workers, and by a parent that ends: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from test_isolation import TESTS, is_alive, queue, within

pytestmark = pytest.mark.skipif(os.name != "posix", reason="isolated workers are for Unix")


def test_a_killed_parent_leaves_no_child():
    script = """
        import isolated_models
        import onelane

        q = onelane.BatchQueue(isolated_models.where, "cpu", onelane.Items(), factory=False,
                               isolation=onelane.Isolation(spare=True))
        print(q(0)[0], flush=True)
        q("more")
        import threading
        threading.Event().wait()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": TESTS},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        within(5, lambda: not is_alive(pid), "the child has outlived its parent")


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_nothing_is_left_behind():
    # In a process of its own: here threads and files of other tests come and go.
    script = """
        import os
        import numpy as np
        import onelane
        from isolated_models import listed
        from test_isolation import within

        # It goes through the arena.
        large = np.ones(1 << 20)

        def left():
            tasks = len(os.listdir("/proc/self/task"))
            files = len(os.listdir("/proc/self/fd"))
            with open(f"/proc/self/task/{os.getpid()}/children") as children:
                return tasks, files, children.read().split()

        def use():
            home = onelane.DeviceExecutor("cpu", isolation=onelane.Isolation(spare=True))
            with home:
                q = onelane.BatchQueue(listed, home, onelane.Items(), factory=False)
                assert (q(large) == 2 * large).all()
                for pid in ("self", *q.stats().isolation.pids):
                    with open(f"/proc/{pid}/maps") as maps:
                        assert "/dev/shm" not in maps.read(), "the arena has a name"
                try:
                    q("abort")
                except onelane.EngineCrashed:
                    pass
                else:
                    raise AssertionError("it has not crashed")
                q.close()

        use()
        within(30, lambda: not left()[2], "children are left")
        tasks, files, _ = left()

        def is_clean():
            now = left()
            return now[0] <= tasks and now[1] <= files and not now[2]

        for _ in range(3):
            use()
        within(30, is_clean, f"more than {tasks} threads and {files} files are left")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": TESTS},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_is_the_parents_alone():
    with queue() as q:
        assert q(1) == 2
        (pid,) = q.stats().isolation.pids
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert q(2) == 4
        assert q.stats().isolation.pids == (pid,)
