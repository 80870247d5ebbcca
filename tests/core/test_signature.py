"""The same run has the same hash in any process; another model, other data or settings have another."""

import subprocess
import sys

import torch
from models import CASES, IDS

import headdynamics as hd
from headdynamics.signature import fingerprint, signature, versions

SETTINGS = {"estimator": "example", "fractions": (0.0, 0.5)}


def hash_of(name="bert", batches=None, settings=SETTINGS):
    case = CASES[name]
    model = case.build()
    return signature(model, hd.find_heads(model), [case.batch] if batches is None else batches, settings)["hash"]


def test_the_same_run():
    batch = CASES["bert"].batch
    backwards = dict(reversed(batch.items()))
    assert list(backwards) != list(batch)
    first = hash_of()
    assert len(first) == 64
    assert hash_of(batches=[backwards], settings=dict(reversed(SETTINGS.items()))) == first
    trained = CASES["bert"].build()
    torch.nn.init.zeros_(trained.classifier.bias)  # weights move in training
    assert signature(trained, hd.find_heads(trained), [batch], SETTINGS)["hash"] == first


def test_another_run():
    batch = CASES["bert"].batch
    ids = IDS.clone()
    ids[0, 0] += 1
    others = [
        hash_of(),
        hash_of("torch"),
        hash_of(batches=[{**batch, "input_ids": ids}]),
        hash_of(batches=[{**batch, "input_ids": IDS.reshape(6, 3)}]),
        hash_of(batches=[{**batch, "more": 1}]),
        hash_of(batches=[batch, batch]),
        hash_of(batches=[]),
        hash_of(settings={**SETTINGS, "estimator": "token"}),
    ]
    assert len(set(others)) == len(others)


def test_fewer_heads_are_another_run():
    case = CASES["bert"]
    model = case.build()
    heads = hd.find_heads(model)
    fewer = hd.Heads(heads.blocks[:1])
    assert signature(model, fewer, [], {})["hash"] != signature(model, heads, [], {})["hash"]


def observed(score):
    case = CASES["bert"]
    return hd.Observer(case.build(), batches=[case.batch], score=score).run.signature


def test_the_scored_examples_are_known_and_in_no_hash():
    batch = CASES["bert"].batch
    other = {**batch, "input_ids": IDS.flip(0)}
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    same, others = observed(hd.accuracy([batch])), observed(hd.accuracy([other]))
    assert same["data"] == others["data"] == same["scored"] == fingerprint([batch])
    assert others["scored"] == fingerprint([other]) != others["data"]
    assert same["hash"] == others["hash"] == observed(lambda model: 0.0)["hash"]


class Named:
    """A score that has `examples`."""

    name, greater_is_better = "zero", True

    def __init__(self, examples):
        self.examples = examples

    def __call__(self, model):
        return 0.0


def test_what_a_score_does_not_tell_is_absent_and_nothing_is_used_up():
    batch = CASES["bert"].batch
    assert observed(Named([batch]))["scored"] == fingerprint([batch])
    once = iter([batch])
    for score in (Named(once), Named(1000), lambda model: 0.0):
        assert "scored" not in observed(score)
    assert next(once) is batch


def test_what_chooses_rows_or_how_many_examples_is_shown_and_in_no_hash():
    case = CASES["bert"]
    model = case.build()
    plain = hd.Observer(model, batches=[case.batch] * 3).run.signature
    online = hd.online.Online(model, window=7)
    both = hd.Observer(model, batches=[case.batch] * 3, budget=0.1, online=online).run.signature
    assert both["hash"] == plain["hash"] and both["data"] == plain["data"]
    more = {"budget": 0.1, "online": {"estimator": "example", "window": 7}}
    assert both["settings"] == plain["settings"] | more


class Thing:
    """Printed with its address."""


def test_addresses_do_not_enter():
    one, two = Thing(), Thing()
    assert str(one) != str(two)
    assert fingerprint([{"x": one}]) == fingerprint([{"x": two}])
    assert hash_of(settings={"f": one}) == hash_of(settings={"f": two})


def test_the_next_process_agrees():
    code = "from headdynamics.signature import fingerprint; print(fingerprint([{'b': 'x', 'a': [1, 2.5, None]}]))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == fingerprint([{"a": [1, 2.5, None], "b": "x"}])


def test_bfloat16_and_numpy_are_read():
    half = torch.ones(2, dtype=torch.bfloat16)
    assert fingerprint([{"x": half}]) == fingerprint([{"x": half.float().numpy()}])
    assert fingerprint([{"x": half}]) != fingerprint([{"x": half + 1}])


def test_versions():
    found = versions()
    assert found["torch"] == torch.__version__ or torch.__version__.startswith(found["torch"])
    assert found["python"] == ".".join(map(str, sys.version_info[:3])) and "numpy" in found
