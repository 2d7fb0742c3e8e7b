"""The live page in a browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_page_shows_the_models(address: str, tmp_path: Path, width: int, height: int) -> None:
    command = [CHROMIUM or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--incognito"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path}", f"--window-size={width},{height}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"http://{address}/"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    body = shown.split("<body>")[1]
    text = re.sub(r"<[^>]*>", " ", body.replace(body[body.index("<script>") :], ""))
    for word in ("toy", "toy-rerank", "toy-classify", "interactive", "embed on cpu", "texts/s"):
        assert word in text, text
    assert re.search(r"onelane\s+ready", text), text
