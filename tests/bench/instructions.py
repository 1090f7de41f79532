"""The rows that do not depend on the machine's load: instructions of the codecs per record, request and
handshake, counted by callgrind, beside the count that was recorded when a change was last accepted.

    ./meltemi bench --only instructions              compares; more than 2 % above is "NOT reached"
    ./meltemi bench --only instructions --record     writes the new counts into instructions.json

Counts hold for one compiler and one set of libraries (Debian 12's) and for the AVX2 kernels, which are
the widest that valgrind knows. The handshake's vary by a few percent with its random numbers.
"""

import glob
import json
import os
import re
import subprocess

RECORDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "instructions.json")
PREFIX = "instructions: "
VARYING = ("handshake",)  # rows that a tighter limit would not fit


def recorded():
    with open(RECORDED) as f:
        return json.load(f)


def goals(goal):
    return [goal(PREFIX + row, "instructions", "meltemi", "recorded",
                 1.1 if any(word in row for word in VARYING) else 1.02) for row in recorded()]


def count(program, work):
    """row -> instructions per call"""
    out, stripped = f"{work}/callgrind.out", f"{work}/codec-bench"
    subprocess.run(["strip", "-g", "-o", stripped, program], check=True)
    subprocess.run(["valgrind", "--tool=callgrind", "--collect-atstart=no",
                    f"--callgrind-out-file={out}", stripped, "--instructions"], check=True,
                   capture_output=True, timeout=600)
    rows = {}
    for path in sorted(glob.glob(out + ".*"), key=lambda p: int(p.rsplit(".", 1)[1])):
        with open(path) as f:
            text = f.read()
        name = re.search(r"^desc: Trigger: Client Request: (.*)\|(\d+)$", text, re.M)
        total = re.search(r"^summary: (\d+)", text, re.M)
        if name and total:
            rows[name.group(1)] = int(total.group(1)) // int(name.group(2))
    return rows


def measure(args, table, wanted, work, say):
    if not wanted.search("instructions"):
        return
    program = os.path.join(os.path.dirname(args.bin), "tests", "meltemi-codec-bench")
    rows = count(program, work)
    say("instructions")
    if args.record:
        with open(RECORDED, "w") as f:
            json.dump(rows, f, indent=1)
            f.write("\n")
    before = recorded()
    for row, instructions in rows.items():
        table.add(PREFIX + row, "meltemi", {"instructions": instructions})
        if row in before:
            table.add(PREFIX + row, "recorded", {"instructions": before[row]})
