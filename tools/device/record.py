#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""record.py FOLDER NAME KEY=VALUE...: writes FOLDER/NAME.json: the values given, beside the machine and the commit.

A value that is JSON (a number, true) is taken as such; KEY=@FILE takes the content of a JSON file. Prints the path.
"""
import json
import os
import subprocess
import sys
import time


def answer_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def commit():
    bundle = ".bundle/commit"
    if os.path.exists(bundle):
        with open(bundle) as file:
            return file.read().strip()
    return answer_of("git", "rev-parse", "HEAD")


def value_of(text):
    if text.startswith("@"):
        with open(text[1:]) as file:
            return json.load(file)
    try:
        return json.loads(text)
    except ValueError:
        return text


def main():
    if len(sys.argv) < 3 or any("=" not in pair for pair in sys.argv[3:]):
        print(__doc__, file=sys.stderr)
        return 64
    folder, name = sys.argv[1:3]
    gpus = answer_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    record = {"name": name, "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit(),
              "gpus": gpus.splitlines() if gpus else []}
    record["load"] = os.getloadavg()
    commands = os.path.join(os.environ.get("WORK", ""), "commands")
    if os.path.exists(commands):
        with open(commands) as file:
            record["commands"] = file.read().splitlines()
    try:
        record.update((key, value_of(value)) for key, value in (pair.split("=", 1) for pair in sys.argv[3:]))
    except (OSError, ValueError) as error:
        print(f"record.py: {error}", file=sys.stderr)
        return 1
    path = os.path.join(folder, name + ".json")
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
