"""A real training in another process, watched: the same run file as live and as backfill, to the last bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fairseq_tiny
import hf_tiny as tiny
import pytest
import torch
from headdynamics.plugins import fairseq_checkpoints
from headdynamics.plugins.hf_checkpoints import watched
from hf_tiny import QUIET
from run_content import content

import headdynamics as hd
from headdynamics.__main__ import main
from headdynamics.checkpoints import Checkpoint, measure_checkpoints
from headdynamics.observer import Observer
from headdynamics.watching import Arrivals, measure_arriving

FEW = "--examples 12 --score-examples 10 --fractions 0,0.5,1 --orders importance,random-1 --ablate one".split()
SOON = ["--look-every", "0.2"]


@pytest.fixture(scope="module")
def training(data, tmp_path_factory):
    """A fairseq training that has just been started, without the instrument: its process and its folder to be."""
    save = tmp_path_factory.mktemp("fairseq") / "save"
    often = "--max-update 24 --save-interval-updates 6 --no-epoch-checkpoints".split()
    one_epoch = ["--max-tokens", "100"]  # of more than 24 updates: no checkpoint of its end, with any build of fairseq
    words = fairseq_tiny.command(data, save, *often, *one_epoch, watched=False)
    with subprocess.Popen(words, env=fairseq_tiny.ENVIRONMENT, stdout=-3, stderr=-3) as process:
        yield process, save


@fairseq_tiny.needs_safe_reading
def test_a_fairseq_training(training, data, tmp_path, caplog):
    """The folder is not there when the watching begins; `checkpoint_last.pt` is written over all the time."""
    process, save = training
    both = [str(save), "--data", str(data), *FEW, "-o"]
    assert not save.exists()
    assert main(["watch", *both, str(tmp_path / "watch.h5"), *SOON, "--until-update", "24"]) == 0
    assert process.wait(60) == 0
    assert main(["backfill", *both, str(tmp_path / "back.h5")]) == 0
    assert content(tmp_path / "watch.h5", "checkpoint") == content(tmp_path / "back.h5", "checkpoint")
    rows = tiny.rows(tmp_path / "watch.h5")
    assert rows["update"] == [6, 12, 18, 24] and rows["status"] == ["ok"] * 4
    assert all(f"update {update}: loss " in caplog.text for update in rows["update"])


def test_a_trainer(tmp_path):
    """Four epochs in another process, which records live: three files alike."""
    out = tmp_path / "out"
    words = [sys.executable, tiny.__file__, str(out), str(tmp_path / "live.h5")]
    with subprocess.Popen(words, env=fairseq_tiny.ENVIRONMENT, stdout=-3, stderr=-3) as training:
        trainer = tiny.trainer(tmp_path / "x", metrics=None)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        path = hd.backfill(trainer, tmp_path / "watch.h5", watched(out, look_every=0.2, until_update=20), **QUIET)
        assert training.wait(60) == 0
    assert tiny.rows(path)["update"] == [5, 10, 15, 20] and tiny.same(before, dict(trainer.model.state_dict()))
    assert hd.backfill(trainer, tmp_path / "back.h5", out, **QUIET) == str(tmp_path / "back.h5")
    assert content(path) == content(tmp_path / "back.h5") == content(tmp_path / "live.h5")


def points(n):
    """A model and checkpoints of it, each of other weights; `tried` counts how often each is loaded."""
    torch.manual_seed(0)
    model, tried = tiny.bert(), dict.fromkeys(range(1, n + 1), 0)
    batches = [tiny.default_data_collator([{k: r[k] for k in r if k != "unused"} for r in tiny.sentences(8, 1)])]
    weights = {update: torch.randn_like(model.classifier.weight) for update in tried}

    def checkpoint(path, fails=0):
        def load(model):
            tried[update] += 1
            if tried[update] <= fails:
                raise OSError("cut short")
            model.classifier.weight.data.copy_(weights[update])

        update = int(path.name)
        return Checkpoint(update, update / 2, str(path), load)

    return model, batches, checkpoint, tried


def test_weights_that_cannot_be_loaded_yet_are_tried_again_and_leave_no_row(tmp_path, caplog):
    model, batches, checkpoint, tried = points(3)
    for update in (1, 2, 3):
        (tmp_path / str(update)).touch()

    def observer(name):
        return Observer(model, str(tmp_path / name), batches=batches, update=None, fractions=(0, 1), strict=True)

    def loaded(path):
        return checkpoint(path, fails=3 if path.name == "2" else 0)

    arrivals = Arrivals(lambda: sorted(tmp_path.glob("?")), loaded, look_every=0.01, idle=0.05)
    measure_arriving(lambda: observer("watch.h5"), arrivals, lambda found: found)
    assert tried == {1: 1, 2: 4, 3: 1} and caplog.text.count("OSError: cut short") == 1
    once = observer("once.h5")
    measure_checkpoints(once, [checkpoint(tmp_path / str(update)) for update in (1, 2, 3)])
    assert content(tmp_path / "watch.h5") == content(tmp_path / "once.h5")
    once.close()
    some = Arrivals(lambda: sorted(tmp_path.glob("?")), checkpoint, look_every=0.01, until_update=3)
    measure_arriving(lambda: observer("some.h5"), some, lambda found: found, only=[1, 3])
    assert tiny.rows(tmp_path / "some.h5")["update"] == [1, 3]
    more = Arrivals(lambda: sorted(tmp_path.glob("?")), checkpoint, look_every=0.01, until_update=3)
    measure_arriving(lambda: observer("some.h5"), more, lambda found: found)  # what has its row is not measured again
    assert tried == {1: 3, 2: 6, 3: 3} and content(tmp_path / "some.h5") == content(tmp_path / "once.h5")


def test_two_watchers_of_one_file(tmp_path):
    model, batches, checkpoint, _ = points(1)
    one = Observer(model, str(tmp_path / "run.h5"), batches=batches, update=None)
    arrivals = Arrivals(lambda: [], checkpoint, idle=0.01, look_every=0.01)
    with pytest.raises(hd.RunFileError, match=f"is being written by process {os.getpid()}"):
        measure_arriving(lambda: Observer(model, str(tmp_path / "run.h5"), batches=batches, update=None), arrivals, id)
    one.close()


@fairseq_tiny.needs_safe_reading
def test_a_file_that_is_written_over_between_reading_its_update_and_its_weights(training, tmp_path):
    process, save = training
    assert process.wait(60) == 0
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes((save / "checkpoint_1_6.pt").read_bytes())
    found = fairseq_checkpoints.watched([last], look_every=0.01).first(lambda stand: stand)
    assert found.update == 6
    last.write_bytes((save / "checkpoint_1_12.pt").read_bytes())
    with pytest.raises(ValueError, match="checkpoint_last.pt was written over meanwhile"):
        fairseq_checkpoints.reread(found)


@fairseq_tiny.needs_safe_reading
def test_ctrl_c_ends_it_after_the_checkpoint_at_hand(training, data):
    process, save = training
    assert process.wait(60) == 0
    words = [sys.executable, "-m", "headdynamics", "watch", str(save), "--data", str(data), *FEW, *SOON]
    with subprocess.Popen(words, env=fairseq_tiny.ENVIRONMENT, text=True, stdout=-1, stderr=-1) as watch:
        said = [watch.stderr.readline()]
        while "run file" not in said[-1] and said[-1]:
            said.append(watch.stderr.readline())
        watch.send_signal(signal.SIGINT)
        printed, rest = watch.communicate(timeout=60)
    assert watch.returncode == 130 and printed == f"{save / 'backfill.h5'}\n", rest
    assert "ends after the checkpoint at hand" in rest and "Traceback" not in rest
    assert tiny.rows(save / "backfill.h5")["status"] in ([], ["ok"])


def test_a_torch_that_cannot_read_them_is_told_at_once(data, tmp_path, monkeypatch, capfd):
    """Else the watching would refuse one after the other and never end."""
    monkeypatch.setattr(fairseq_checkpoints, "allow_fairseq_checkpoints", lambda: False)
    assert main(["watch", str(tmp_path), "--data", str(data)]) == 2
    assert "torch 2.4 and later can" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["OUT", "--data", "nowhere"], "--data nowhere does not exist"),
        pytest.param(
            ["OUT", "--data", "DATA", "--idle", "0.3", *SOON],
            "no checkpoint came",
            marks=fairseq_tiny.needs_safe_reading,
        ),
        (["OUT", "--data", "DATA", "--look-every", "0"], "look every 0.0 seconds"),
        (["OUT", "--data", "DATA", "--transfer"], "unknown option --transfer"),
        (["OUT"], "required: --data"),
    ],
)
def test_one_clear_line(data, tmp_path, words, sentence, capfd):
    places = {"OUT": str(tmp_path / "out"), "DATA": str(data)}
    assert main(["watch", *(places.get(word, word) for word in words)]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("headdynamics: ") and sentence in last
    assert not Path(places["OUT"]).exists()
