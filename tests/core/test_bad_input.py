"""What a hand slips into a call in place of the right thing: one sentence that names the cause and the cure."""

import numpy as np
import pytest
import torch
from models import CASES

import headdynamics as hd

BERT = CASES["bert"]
ONE_BATCH = "one batch, of input_ids, .*: put it in a list"
ONCE = "a generator, which gives them once.*: give a list"


def summed(model, batch):
    return BERT.loss(model, batch).sum()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda model: hd.importance(model, BERT.batch), ONE_BATCH),
        (lambda model: hd.accuracy(BERT.batch), ONE_BATCH),
        (lambda model: hd.Observer(model, batches=BERT.batch), ONE_BATCH),
        (lambda model: hd.mean_loss(batch for batch in [BERT.batch]), ONCE),
        (lambda model: hd.Observer(model, batches=(batch for batch in [BERT.batch])), ONCE),
        (lambda model: hd.importance(model, [BERT.batch], summed), r"one number an example, \[B\], .* gave shape \[\]"),
        (lambda model: hd.mean_loss([BERT.batch], summed)(model), r"one number an example, \[B\], .* gave shape \[\]"),
        (lambda model: hd.prune_order(np.arange(8.0)), "takes what hd.importance gives"),
    ],
)
def test_the_wrong_thing_is_told_by_its_name(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(BERT.build())


def test_importance_alone_may_come_from_a_generator():
    model = BERT.build()
    once = hd.importance(model, (batch for batch in [BERT.batch]))
    assert np.array_equal(once.mean, hd.importance(model, [BERT.batch]).mean)


@pytest.mark.parametrize(
    ("update", "sentence"), [(-1, "from 0 on, not -1"), ("first", r"invalid literal for int\(\)")]
)
def test_an_update_that_is_no_count_is_never_written(update, sentence, tmp_path):
    observer = hd.Observer(BERT.build(), str(tmp_path / "run.h5"), batches=[BERT.batch])
    with pytest.raises(ValueError, match=sentence):
        observer.snapshot(update=update)
    observer.snapshot(update=torch.tensor(3))
    observer.close()
    assert hd.load_run(observer.path).snapshots["update"].values.tolist() == [3]


def test_a_folder_in_place_of_the_run_file(tmp_path):
    with pytest.raises(hd.RunFileError, match="is a folder: name the run file in it, such as .*run.h5"):
        hd.Observer(BERT.build(), str(tmp_path), batches=[BERT.batch])
    assert not list(tmp_path.iterdir())
