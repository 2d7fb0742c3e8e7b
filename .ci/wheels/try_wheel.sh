#!/bin/sh
# Installs the wheel in a folder that fits this machine into a fresh environment, with no compiler on PATH,
# and uses what needs neither PyTorch nor a device.
set -eu
dist=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=$(command -v "${PYTHON:-python3}")
PATH=/usr/bin:/bin
"$python" -m venv "$folder/env"
cd "$folder"
if command -v cargo >/dev/null || command -v rustc >/dev/null; then
    echo "there is a Rust on PATH: this would not show that none is needed" >&2
    exit 1
fi
case $dist in /*) ;; *) dist=$OLDPWD/$dist ;; esac
"$folder/env/bin/python" -m pip install --quiet --no-index --only-binary :all: --find-links "$dist" onelane
"$folder/env/bin/python" -W error - <<'END'
import threading
from concurrent.futures import ThreadPoolExecutor

import onelane

with onelane.DeviceExecutor("tensorrt", custom=True) as device:
    with ThreadPoolExecutor(8) as pool:
        threads = set(pool.map(lambda _: device.call(threading.get_ident), range(100)))
    assert len(threads) == 1
    queue = onelane.BatchQueue(
        lambda items: [item * 2 for item in items],
        device,
        requests=onelane.Items(),
        factory=False,
    )
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(queue, range(100))) == [2 * item for item in range(100)]
    assert queue.stats().completed == 100
print("onelane", onelane.__version__, "works")
END
# Without PyTorch it has less to say, and says it.
"$folder/env/bin/python" -m onelane doctor
