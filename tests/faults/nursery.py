"""Nursery: `python nursery.py TRAINER` imports a trainer's libraries once and forks one training process a line.

Each line of stdin is a job in JSON: {"words": [...], "log": FILE, "point": [...]}; each answer is a line with the exit
code, negative for a signal. headdynamics itself is imported in the training process, by the road that a user takes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

FAULTS = Path(__file__).resolve().parent
HUNG = 900  # seconds, of a training of five
sys.path[:0] = [str(FAULTS), str(FAULTS.parent / "plugins")]

from points import ANY, Point, place  # noqa: E402


def fairseq_train(words):
    """What the program fairseq-train does."""
    from fairseq_cli.train import cli_main

    sys.argv = ["fairseq-train", *words]
    cli_main()


def hf_train(words):
    """A Trainer of 20 updates with a checkpoint at every fourth, which resumes from the newest: FOLDER."""
    import hf_tiny as tiny
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    class Telling(TrainerCallback):
        """Says which rows were recorded, when the Trainer's reporters are told."""

        def on_log(self, args, state, control, logs=None, **_):
            if "headdynamics/score" in logs:
                print("recorded", state.global_step, flush=True)

    folder = Path(words[0])
    watch = ("attach", str(folder / "run.h5"), tiny.QUIET | {"every": 1})
    folder.mkdir(parents=True, exist_ok=True)
    saves = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 3}
    trainer = tiny.trainer(folder, watch, num_train_epochs=4, callbacks=[Telling()], **saves)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))


def prepare(trainer):
    """Import what takes long; the function that a training process calls."""
    import h5py  # noqa: F401
    import scipy.stats  # noqa: F401

    if trainer == "fairseq":
        import fairseq_cli.train  # noqa: F401

        return fairseq_train
    import accelerate  # noqa: F401
    from transformers import BertForSequenceClassification, Trainer  # noqa: F401

    return hf_train


def forked(train, job):
    """The exit code of one training process."""
    point = Point(*job["point"]) if job["point"] else None
    began, pid = time.monotonic(), os.fork()
    if not pid:
        status = 1
        try:
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            if point is not None:
                place(point)
            train(job["words"])
            status = 0
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    limit = point.seconds if point is not None and point.what == ANY else HUNG
    while time.monotonic() - began < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if limit < HUNG else "hung"


def main(trainer):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    train = prepare(trainer)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(forked(train, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
