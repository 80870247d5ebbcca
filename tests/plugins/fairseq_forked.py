"""fairseq's programs in processes forked from one that has imported fairseq: that takes longer than a tiny training.

Nothing of ours is imported here: fairseq must be the first to import a `--user-dir`.
"""

import multiprocessing
import os
import socket
import sys
from importlib import import_module

LIMIT = 100  # seconds; a rank that hangs is a failure


class Started:
    """A program that runs: `fairseq_cli.train` or another with a `cli_main`."""

    def __init__(self, words, log, program="fairseq_cli.train"):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fairseq_cli.train"])
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = context.Process(target=_run, args=(list(map(str, words)), str(log), program))
        self._process.start()

    def end(self):
        """(exit code, what was printed) at its end; it fails where that does not come."""
        self._process.join(LIMIT)
        hangs = self._process.is_alive()
        self._process.kill()
        text = self._log.read_text()
        assert not hangs, f"hangs: {text[-3000:]}"
        return self._process.exitcode, text


def _run(words, log, program):
    sink = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    import_module("torch").set_num_threads(1)
    sys.argv = words
    import_module(program).cli_main()


def run(words, log, program="fairseq_cli.train"):
    """What was printed by a program that ends well."""
    code, text = Started(words, log, program).end()
    assert code == 0, text[-6000:]
    return text


def ranks(words, folder, size=2):
    """Start `words`, a command line of fairseq-train, as so many ranks; and wait: their exit codes and logs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = f"""--ddp-backend legacy_ddp --distributed-backend gloo --distributed-no-spawn
     --distributed-init-method tcp://localhost:{port} --distributed-world-size {size} --distributed-rank""".split()
    started = [Started([*words, *together, rank], folder / f"rank-{rank}.log") for rank in range(size)]
    codes, logs = zip(*[process.end() for process in started], strict=True)
    return list(codes), list(logs)
