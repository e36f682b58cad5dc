"""What batching does for mtplug-serve: as many clients, of a server that joins their requests and of one that does not.

    pip install ./plugins/mtplug-server
    OMP_NUM_THREADS=1 python benchmarks/server.py demo/run demo/corpus/test.de

Each client sends one sentence after another. The two servers take turns; what is told are medians over the rounds, and
the ratios of the two in each round.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SERVERS = {"together": [], "one at a time": ["--batch", "1", "--linger", "0"]}


def main() -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("run", type=Path)
    made.add_argument("input", type=Path, help="a sentence in each line")
    made.add_argument("--clients", type=int, default=32)
    made.add_argument("--requests", type=int, default=320, help="of all clients in a round")
    made.add_argument("--rounds", type=int, default=5)
    args, options = made.parse_known_args()  # further ones are those of mtplug-serve
    lines = args.input.read_text(encoding="utf-8").splitlines()[: args.requests]
    started = {name: start(args.run, [*own, *options]) for name, own in SERVERS.items()}
    try:
        rounds = []
        for number in range(args.rounds + 1):
            found = {n: measured(*server, lines, args.clients) for n, server in started.items()}
            rounds += [found] if number else []  # the first one warms up
    finally:
        for process, _ in started.values():
            process.terminate()
    for n, what in enumerate(
        ("requests per second", "requests per CPU second", "median ms of a request")
    ):
        for name in SERVERS:
            shown = sorted(r[name][n] for r in rounds)
            print(
                f"{what}, {name}: {statistics.median(shown):.1f} ({shown[0]:.1f}-{shown[-1]:.1f})"
            )
        ratios = sorted(r["together"][n] / r["one at a time"][n] for r in rounds)
        print(f"  ratio: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


def start(run: Path, options: list[str]) -> tuple[subprocess.Popen, int]:
    """A server, and its port."""
    command = [sys.executable, "-m", "mtplug_server", str(run), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = process.stderr.readline()
    if " serves " not in told:
        sys.exit(told)
    return process, int(told.split(" serves ")[0].rpartition(":")[2])


def measured(
    process: subprocess.Popen, port: int, lines: list[str], clients: int
) -> tuple[float, float, float]:
    """Requests per second, and per second of the server's CPU time; median of what a request takes, in ms."""
    times: list[float] = []
    work = iter(lines)
    lock = threading.Lock()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                line = next(work, None)
            if line is None:
                return connection.close()
            begun = time.monotonic()
            connection.request("POST", "/translate", json.dumps({"text": line}))
            answer = connection.getresponse()
            assert len(json.loads(answer.read())["translations"]) == 1
            times.append(time.monotonic() - begun)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    cpu, begun = cpu_seconds(process.pid), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, used = time.monotonic() - begun, cpu_seconds(process.pid) - cpu
    return len(lines) / took, len(lines) / used, 1000 * statistics.median(times)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
