#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compare_losses.py REFERENCE OTHER [--first STEPS LIMIT] [--last LIMIT] [--smooth WINDOW LIMIT] [--from STEP] [--json FILE]

Compares the losses of two metrics.jsonl, step by step: the largest relative difference over the first STEPS steps, that of the last
step, and the largest between means over WINDOW steps. Exit code 1 when one is over its LIMIT, 65 when the files do not fit.
"""
import argparse
import json
import math
import sys


def losses(path, first_step):
    found = {}
    with open(path) as file:
        for line in file:
            entry = json.loads(line)
            if "grad_norm" in entry and entry["step"] >= first_step:
                found[entry["step"]] = entry["loss"]
    return found


def difference(a, b):
    return abs(a - b) / abs(a) if math.isfinite(a) and math.isfinite(b) and a != 0 else math.inf


def mean_differences(a, b, window):
    """Of the means over each `window` steps that follow each other."""
    return [difference(sum(a[i:i + window]) / window, sum(b[i:i + window]) / window) for i in range(len(a) - window + 1)]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("reference")
    parser.add_argument("other")
    parser.add_argument("--first", nargs=2, type=float)
    parser.add_argument("--last", type=float)
    parser.add_argument("--smooth", nargs=2, type=float)
    parser.add_argument("--from", dest="start", type=int, default=1)
    parser.add_argument("--json")
    options = parser.parse_args()
    reference, other = losses(options.reference, options.start), losses(options.other, options.start)
    if not reference or sorted(reference) != sorted(other):
        print(f"the runs have {len(reference)} and {len(other)} steps from {options.start} on, not the same", file=sys.stderr)
        return 65
    steps = sorted(reference)
    a, b = [reference[step] for step in steps], [other[step] for step in steps]
    checks = {}
    if options.first:
        checks["first"] = (max(difference(x, y) for x, y in list(zip(a, b))[:int(options.first[0])]), options.first[1])
    if options.last is not None:
        checks["last"] = (difference(a[-1], b[-1]), options.last)
    if options.smooth:
        window = min(int(options.smooth[0]), len(a))
        checks["smooth"] = (max(mean_differences(a, b, window)), options.smooth[1])
    result = {"steps": len(steps), "last_loss": [a[-1], b[-1]],
              **{name: {"difference": value if math.isfinite(value) else None, "limit": limit, "holds": value <= limit}
                 for name, (value, limit) in checks.items()}}
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        with open(options.json, "w") as file:
            file.write(text + "\n")
    return 0 if all(value <= limit for value, limit in checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
