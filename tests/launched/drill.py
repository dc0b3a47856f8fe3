# SPDX-License-Identifier: Apache-2.0
"""What the drills share: a small run on text of this repository, jobs under mpirun that can be killed by process number, and a
look at what is left of them. Standard library only."""
import atexit
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "--timeout", "200", "-n"]
MARK = "CONCLAVE_DRILL_JOB"

# Every kind of state that a resume needs: experts on two ranks, a bias, counts of the step before, dropped tokens, two sources.
CONFIG = """\
model: {vocab_size: 264, hidden_size: 64, num_layers: 3, num_attention_heads: 2, ffn_hidden_size: 128, max_seq_len: 64}
moe:
  num_experts: 8
  top_k: 2
  expert_hidden_size: 128
  layers: {first_k_dense: 1}
  router: {score: sigmoid, norm_topk_prob: true}
  balance:
    losses:
      - {type: switch, coef: 0.01, level: global}
      - {type: z, coef: 1e-3}
    bias: {update_rate: 0.01}
  capacity: {factor: 1.5}
parallel: {ep: 2, reduction: canonical}
data:
  train: [{name: english, path: english, weight: 2.0}, {name: code, path: code}]
  valid: [{name: english, path: english-valid}]
  seq_len: 64
optim: {lr: 1e-2, warmup: 5}
train: {steps: 60, global_batch_size: 16, micro_batch_size: 2}
eval: {every: 20, batches: 2}
checkpoint: {every: 5, keep_last: 2}
metrics: {every: 1}
"""


class Failed(Exception):
    """The drill found something that must not be."""


def require(condition, what, job=None):
    if not condition:
        raise Failed(what if job is None else f"{what}\n--- what the job said\n{job.output()}")


def make_run_folder(binary, folder):
    """Token files of two kinds and run.yaml in `folder`."""
    kinds = {"english": sorted(ROOT.glob("docs/**/*.md")) + [ROOT / "README.md"], "code": sorted(ROOT.glob("src/**/*.cpp"))}
    for kind, files in kinds.items():
        with open(folder / f"{kind}.jsonl", "w") as out:
            for path in files:
                out.write(json.dumps({"text": path.read_text()}) + "\n")
        subprocess.run([binary, "data", "tokenize", folder / f"{kind}.jsonl", "--tokenizer", "bytes", "--output", folder / kind,
                        "--valid-share", "0.2"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    (folder / "run.yaml").write_text(CONFIG)


class Job:
    """A command, under mpirun when `ranks` is given. Its processes are known by a mark in their environment."""

    def __init__(self, command, log, ranks=0, **environment):
        self.mark = uuid.uuid4().hex
        self.log = log
        self.began = time.monotonic()
        settings = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1", MARK: self.mark}
        with open(log, "w") as out:
            self.process = subprocess.Popen((MPIRUN + [str(ranks)] if ranks else []) + [str(word) for word in command], stdout=out,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                                            env={**os.environ, **settings, **environment})
        atexit.register(self.end)

    def output(self):
        return self.log.read_text(errors="replace")

    def alive(self):
        """Ranks of all its processes, by number; launcher and mpirun are rank -1."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # gone, or not ours
                continue
            if f"{MARK}={self.mark}".encode() in words:
                rank = [int(word.split(b"=")[1]) for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
                found[int(entry.name)] = rank[0] if rank else -1
        return found

    def kill(self, ranks, number=signal.SIGKILL):
        """Sends a signal to some of alive(); returns how many it reached."""
        reached = 0
        for process, rank in self.alive().items():
            if rank in ranks:
                try:
                    os.kill(process, number)
                    reached += 1
                except ProcessLookupError:
                    pass
        return reached

    def wait_for(self, text, seconds=60):
        """Until the output holds `text`; False when the job ended without saying it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            if text in self.output():
                return True
            if ended:
                return False
            time.sleep(0.002)
        raise Failed(f"{seconds} s without '{text}'\n{self.output()}")

    def wait(self, seconds=120):
        """The exit code, when every process of the job is gone."""
        end = time.monotonic() + seconds
        while self.process.poll() is None or self.alive():
            if time.monotonic() > end:
                left = self.alive()
                self.end()
                raise Failed(f"still there after {seconds} s: {left}\n{self.output()}")
            time.sleep(0.01)
        return self.process.returncode

    def end(self):
        """Whatever is left of it; when the drill ends, too."""
        if self.process.poll() is None or self.alive():
            self.kill([-1, *range(64)])
            self.process.wait()


def conduct(one, keep):
    """Runs one.go(), which works in one.folder, and says what failed without a traceback."""
    try:
        one.go()
    except Failed as failure:
        print(f"FAILED: {failure}")
        sys.exit(1)
    finally:
        if keep:
            print(f"kept {one.folder}")
        else:
            shutil.rmtree(one.folder, ignore_errors=True)


def steps(run):
    """Committed checkpoints, oldest first: {step: state digest}."""
    found = {}
    for folder in sorted((run / "checkpoints").glob("step-*")):
        found[int(folder.name[5:])] = json.loads((folder / "MANIFEST.json").read_text())["state"]
    return found


def records(run):
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_seconds")} for line in lines]
