"""`python -m onelane doctor`: every line explained, and exit codes that mean something."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from onelane import _doctor, _hazards
from onelane._install import versions


def lines(monkeypatch, here="linux", env=(), **installed):
    monkeypatch.setattr(_doctor.sys, "platform", here)
    monkeypatch.setattr(_doctor.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(_doctor, "version", lambda name: installed.get(name.replace("-", "_")))
    monkeypatch.setattr(_doctor._devices, "default", lambda: "mps" if here == "darwin" else "cpu")
    monkeypatch.setattr(_doctor._memory, "footprint", lambda: 1 << 20)
    return {line.topic: line for line in _doctor.examine(dict(env))}


def test_every_line_says_what_it_means_and_what_to_do(monkeypatch):
    for here in ("linux", "darwin"):
        found = lines(
            monkeypatch, here, torch="2.14.1", sentence_transformers="6.2.0", mlx="0.31.2"
        )
        assert len(found) > 12
        for line in found.values():
            assert line.found
            assert line.meaning
            assert bool(line.do) == (line.level == "do"), line


@pytest.mark.parametrize(
    ("torch", "applies", "fixed"),
    [
        ("2.12.0", ["two-threads-abort", "transposed-matmul", "empty-cache-keeps-graphs"], []),
        ("2.13.0", ["two-threads-abort", "transposed-matmul"], ["empty-cache-keeps-graphs"]),
        ("2.14.1", ["two-threads-abort"], ["freed-memory-crosses-streams"]),
        ("2.15.0+cu132", ["graphs-per-shape"], ["two-threads-abort"]),
        ("2.6.0", ["memory-per-shape"], ["transposed-matmul"]),
    ],
)
def test_the_table_of_hazards_by_version(monkeypatch, torch, applies, fixed):
    found = lines(monkeypatch, "darwin", torch=torch)
    for name in applies:
        assert found[f"hazard {name}"].level == "do"
    for name in fixed:
        assert found[f"hazard {name}"].found.startswith("fixed")
    assert {h.name for h in _hazards.HAZARDS} == {
        topic.removeprefix("hazard ") for topic in found if topic.startswith("hazard ")
    }


def test_on_linux_a_macs_hazards_are_only_told(monkeypatch):
    found = lines(monkeypatch, torch="2.14.1")
    assert all(line.level != "do" for line in found.values())
    found = lines(monkeypatch, torch="2.14.1", tokenizers="0.23.3")
    assert found["hazard shared-tokenizers"].level == "do"


def test_variables(monkeypatch):
    env = {"PYTORCH_MPS_GRAPH_CACHE_POLICY": "lru", "PYTORCH_ENABLE_MPS_FALLBACK": "1"}
    found = lines(monkeypatch, env=env, torch="2.15.0")
    assert "no effect" in found["variable PYTORCH_MPS_GRAPH_CACHE_POLICY"].meaning
    assert found["variable PYTORCH_ENABLE_MPS_FALLBACK"].level == "note"
    mac = lines(monkeypatch, "darwin", torch="2.15.0")
    assert mac["variable PYTORCH_MPS_*_WATERMARK_RATIO"].level == "do"


def test_libraries_that_install_does_not_know(monkeypatch):
    found = lines(monkeypatch, torch="2.15.0", sentence_transformers="3.0.0", diffusers="0.40")
    assert found["sentence-transformers"].level == "do"
    assert "guard" in found["diffusers"].meaning
    assert versions.numbers("6.2.0rc1") == (6, 2)


def test_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "onelane", "doctor", "--json"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["to_do"] else 0)
    assert {"lines", "to_do", "next"} == set(found)


def test_exit_codes(monkeypatch, capsys):
    fine = [_doctor.Line("a", "ok", "b", "c")]
    monkeypatch.setattr(_doctor, "examine", lambda: fine)
    assert _doctor.main() == 0
    monkeypatch.setattr(_doctor, "examine", lambda: [*fine, _doctor.Line("a", "do", "b", "c", "d")])
    assert _doctor.main() == 1
    assert "-> d" in capsys.readouterr().out

    def broken():
        raise OSError("no")

    monkeypatch.setattr(_doctor, "examine", broken)
    assert _doctor.main() == 2
