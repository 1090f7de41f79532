#!/usr/bin/env python3
"""./meltemi bench: every row beside its peers, in the same run.

One-core mode: every process is pinned to CPU 0, the load is a closed loop, and the cost is the CPU of
the peer's processes (schedstat) divided by the work done. Rounds alternate between the peers; a row
reports the median over rounds. Figures of different runs do not compare; ratios inside one run do.
It must never assert on a time: it prints, and leaves the judgement to the reader.

  bench.py --bin DIR [--rounds N] [--seconds S] [--only REGEX] [--json] [--record]
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

import hbone_rows
import http_rows
import instructions
import tunnel


class Table:
    """row -> peer -> list of {figure: value}; printed as medians and as ratios to the row's base."""

    def __init__(self):
        self.rows = {}

    def add(self, row, peer, figures):
        self.rows.setdefault(row, {}).setdefault(peer, []).append(figures)

    def medians(self):
        out = {}
        for row, by_peer in self.rows.items():
            for peer, samples in by_peer.items():
                keys = sorted({k for s in samples for k in s})
                out.setdefault(row, {})[peer] = {
                    k: statistics.median(s[k] for s in samples if k in s) for k in keys}
        return out

    def print(self, goals):
        for row, by_peer in self.medians().items():
            print(f"\n{row}")
            keys = sorted({k for figures in by_peer.values() for k in figures})
            width = max(len(p) for p in by_peer) + 2
            print("  " + "peer".ljust(width) + "".join(k.rjust(20) for k in keys))
            for peer, figures in by_peer.items():
                cells = "".join(
                    (f"{figures[k]:.3f}" if k in figures else "-").rjust(20) for k in keys)
                print("  " + peer.ljust(width) + cells)
            for goal in goals:
                line = goal.judge(row, by_peer)
                if line:
                    print("  " + line)


class Goal:
    """`figure` of `ours`, divided by that of `peer` if there is one, should be at most `limit`."""

    def __init__(self, row, figure, ours, peer, limit):
        self.row, self.figure, self.ours, self.peer, self.limit = row, figure, ours, peer, limit

    def ratio(self, by_peer):
        ours, peer = by_peer.get(self.ours, {}), by_peer.get(self.peer, {})
        if self.figure not in ours:
            return None
        if self.peer is None:
            return ours[self.figure]
        return ours[self.figure] / peer[self.figure] if peer.get(self.figure) else None

    def judge(self, row, by_peer):
        if row != self.row:
            return None
        value = self.ratio(by_peer)
        if value is None:
            return None
        verdict = "reached" if value <= self.limit else "NOT reached"
        against = f"x {self.peer}" if self.peer else ""
        return f"{self.figure}: {value:.2f}{against} (goal {self.limit}: {verdict})"


SUITES = (tunnel, http_rows, hbone_rows, instructions)
GOALS = [goal for suite in SUITES for goal in suite.goals(Goal)]


def main():
    parser = argparse.ArgumentParser(prog="meltemi bench")
    parser.add_argument("--bin", default=os.environ.get("MELTEMI_BIN_DIR"), required=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="regular expression on row names")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true",
                        help="take this run's instruction counts as the new yardstick")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("meltemi bench: needs root (network namespaces, BPF)")
    if not args.bin or not os.path.isdir(args.bin):
        sys.exit("meltemi bench: --bin must name the folder of built binaries; run ./meltemi build")
    for tool in ("haproxy", "nginx", "openssl", "taskset", "wrk", "h2load", "nghttpd", "nghttpx",
                 "valgrind"):
        if not shutil.which(tool):
            sys.exit(f"meltemi bench: {tool} is missing; ./meltemi bench installs it")
    table, wanted = Table(), re.compile(args.only)
    say = (lambda *a: print(*a, file=sys.stderr, flush=True))
    with tempfile.TemporaryDirectory(prefix="meltemi-bench-") as work:
        for suite in SUITES:
            try:
                suite.measure(args, table, wanted, work, say)
            except Exception as error:  # one suite's failure must not hide the other's figures
                say(f"meltemi bench: {suite.__name__}: {error!r}")
                table.add(f"{suite.__name__}: failed", "error", {})
    if args.json:
        medians = table.medians()
        print(json.dumps({
            "rows": medians,
            "goals": [{"row": g.row, "figure": g.figure, "peer": g.peer, "limit": g.limit,
                       "ratio": g.ratio(medians.get(g.row, {}))} for g in GOALS],
            "rounds": args.rounds, "seconds": args.seconds}, indent=1))
    else:
        table.print(GOALS)
    return 1 if any("failed" in row for row in table.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
