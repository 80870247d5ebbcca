"""The command line on a text classifier's checkpoints: model, tokenizer and sentences from files, nothing run."""

import json
import shutil
from pathlib import Path

import h5py
import hf_tiny as tiny
import numpy as np
import pytest
import torch
from headdynamics.plugins.hf_text import read_examples, text_trainer
from hf_tiny import QUIET
from run_content import content
from transformers import BertTokenizerFast, DataCollatorWithPadding, TrainingArguments

import headdynamics as hd
from headdynamics.__main__ import main

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"good bad film plot a the was so and but very not".split()]


def sentences(n):
    rng = np.random.default_rng(0)
    found = []
    for label in rng.integers(0, 2, n).tolist():
        words = rng.choice(WORDS[7:], rng.integers(2, 7)).tolist()
        found.append((label, " ".join([*words, ("bad", "good")[label]])))
    return found


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A classifier of sentences, watched, with its tokenizer in every checkpoint; and the sentences as valid.tsv."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    words = BertTokenizerFast(str(folder / "vocab.txt"))
    rows = sentences(30)
    (folder / "valid.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in rows))
    data = [{**words(text), "labels": label} for label, text in rows]
    made = tiny.NotingTrainer(
        tiny.bert(),
        TrainingArguments(
            str(folder / "out"), num_train_epochs=2, per_device_train_batch_size=10, per_device_eval_batch_size=8,
            save_strategy="epoch", use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=0.01,
        ),
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorWithPadding(words),
        processing_class=words,
    )  # fmt: skip
    hd.attach(made, folder / "live.h5", **QUIET | {"fractions": (0.0, 0.5, 1.0)})
    made.train()
    return folder


FEW = ["--examples", "12", "--score-examples", "10", "--fractions", "0,0.5,1", "--orders", "importance,random-1"]


def here(*words):
    return main(["backfill", *map(str, words)])


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_the_same_numbers_as_live(training, tmp_path, kind, capfd):
    """The data in each form; the signature too, once told what no checkpoint says: seed and learning rate."""
    data = training / "valid.tsv"
    if kind != "tsv":
        rows = [dict(zip(("label", "text"), line.split("\t"), strict=True)) for line in data.read_text().splitlines()]
        data = tmp_path / f"valid.{kind}"
        lines = [json.dumps(row) for row in rows] if kind == "jsonl" else ["text,label"]
        lines += [] if kind == "jsonl" else [f"{row['text']},{row['label']}" for row in rows]
        data.write_text("\n".join(lines))
    output = tmp_path / "back.h5"
    assert here(training / "out", "--data", data, "-o", output, "--batch-size", "8", "--cpu", *FEW) == 0
    assert capfd.readouterr().out.strip() == str(output)
    assert {**content(training / "live.h5"), "@signature": ""} == {**content(output), "@signature": ""}
    with h5py.File(training / "live.h5") as live, h5py.File(output) as back:
        one, other = (json.loads(file.attrs["signature"]) for file in (live, back))
    assert one["data"] == other["data"]
    assert one["settings"] | {"training_seed": None, "learning_rate": None} == other["settings"]
    told = ["--training-seed", "42", "--learning-rate", "0.01"]
    if kind == "tsv":
        assert here(training / "out", "--data", data, "-o", output, "--batch-size", "8", "--cpu", *FEW, *told) == 0
        assert content(training / "live.h5") == content(tmp_path / "back-2.h5")


def test_watched_they_give_the_same_file(training, tmp_path):
    both = [str(training / "out"), "--data", str(training / "valid.tsv"), "--batch-size", "8", "--cpu", *FEW]
    assert main(["watch", *both, "-o", str(tmp_path / "watch.h5"), "--look-every", "0.05", "--idle", "0.1"]) == 0
    assert main(["backfill", *both, "-o", str(tmp_path / "back.h5")]) == 0
    assert content(tmp_path / "watch.h5") == content(tmp_path / "back.h5")
    assert tiny.rows(tmp_path / "watch.h5")["status"] == ["ok", "ok"]
    assert main(["watch", *both, "-o", str(tmp_path / "one.h5"), "--look-every", "0.05", "--only", "3"]) == 0
    assert tiny.rows(tmp_path / "one.h5")["update"] == [3]


def copied(training, to):
    shutil.copytree(training / "out/checkpoint-6", to / "checkpoint-6")
    return to / "checkpoint-6"


def changed(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        (None, ["--data", "nowhere.tsv"], "--data nowhere.tsv does not exist"),
        (None, ["--score", "blue"], "unknown score 'blue'; there are accuracy, loss, perplexity"),
        (None, ["--orders", "imprtance"], "unknown order 'imprtance'"),
        (None, ["--fractions", "0;1"], "no list of numbers"),
        (None, ["--label-column", "stars"], "has no column 'text'"),
        (None, ["--text-columns", "3", "--label-column", "1"], "has no column '3'"),
        (None, ["--tokenizer", "EMPTY"], "has no tokenizer"),
        (None, ["--only", "7"], "no checkpoint is of update 7; there are 6"),
        ({"architectures": ["BertForMaskedLM"]}, [], "BertForMaskedLM is no classifier of transformers"),
        ({"architectures": ["os.systemForSequenceClassification"]}, [], "is no classifier of transformers"),
        ({"architectures": None}, [], "does not name the model's architecture"),
        ({"attn_implementation": "someone/kernel"}, [], "asks for code from elsewhere"),
        ({"_attn_implementation": {"": "someone/kernel"}}, [], "asks for code from elsewhere"),
        ({"num_hidden_layers": "many"}, [], "cannot be loaded as BertForSequenceClassification"),
        ({"model_type": "nothing"}, [], "cannot be loaded as BertForSequenceClassification"),
    ],
)
def test_one_clear_line(training, tmp_path, change, words, sentence, capfd):
    folder = copied(training, tmp_path)
    if change:
        changed(folder / "config.json", **change)
    words = [word.replace("EMPTY", str(tmp_path)) for word in words]
    data = [] if "--data" in words else ["--data", training / "valid.tsv"]
    assert here(folder, *data, "-o", tmp_path / "back.h5", *words) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("headdynamics: ") and sentence in last
    assert not (tmp_path / "back.h5").exists()


def test_code_in_a_checkpoint_is_not_run(training, tmp_path):
    """auto_map, a module beside it, hostile pickles: the model and tokenizer of transformers are used, or none."""
    folder = copied(training, tmp_path)
    mark = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    evil = "modeling_evil.Evil"
    changed(folder / "config.json", auto_map={"AutoConfig": evil, "AutoModelForSequenceClassification": evil})
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, evil]})

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (mark,))

    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        torch.save(Bomb(), folder / name)
    here(folder, "--data", training / "valid.tsv", "-o", tmp_path / "back.h5", *FEW)
    assert not mark.exists()
    with h5py.File(training / "live.h5") as live, h5py.File(tmp_path / "back.h5") as back:
        assert np.array_equal(live["importance/mean"][1], back["importance/mean"][0])


def test_a_folder_with_a_state_of_its_own_and_a_damaged_checkpoint(training, tmp_path, capfd):
    """All its good checkpoints, and the run file beside them; `--strict` stops at the other."""
    out = tmp_path / "out"
    shutil.copytree(training / "out", out)
    shutil.copy(out / "checkpoint-6/trainer_state.json", out)
    (out / "checkpoint-9").mkdir()
    (out / "checkpoint-9/trainer_state.json").write_text('{"epo')
    words = [out, "--data", training / "valid.tsv", "--cpu", *FEW]
    assert here(*words, "--strict") == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"headdynamics: {out / 'checkpoint-9/trainer_state.json'} does not say where training")
    assert here(*words) == 0
    assert tiny.rows(out / "backfill.h5")["update"] == [3, 6]


def test_columns(tmp_path):
    """By name, by number, pairs of texts; label names of the config."""
    table = tmp_path / "pairs.csv"
    table.write_text('1,"first, quoted",second\n0,a,b\n')
    assert read_examples(table, ["2", "3"], "1") == ([["first, quoted", "a"], ["second", "b"]], ["1", "0"])
    table.write_text("stars,premise,hypothesis\n1,p,h\n")
    assert read_examples(table, ["premise", "hypothesis"], "stars") == ([["p"], ["h"]], ["1"])
    for text, sentence in (
        ("", "is empty"),
        ("text,label\n", "has no examples"),
        ("text,label\na\n", "too few columns"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_examples(table)
    with pytest.raises(ValueError, match="give a .tsv, .csv or .jsonl file"):
        read_examples(tmp_path / "pairs.txt")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"text": "a", "label": 1}\n\n{"text": "a", \n', "a.jsonl, line 3 is not JSON: Expecting"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n' + b"[" * 100000, "a.jsonl, line 2 is not JSON"),
        ("a.tsv", "1\tgood\n0\tfa\u00e7ade\n".encode("latin-1"), "a.tsv, line 2 is not UTF-8"),
        ("a.csv", b"text,label\n" + b"a" * 200000 + b",1\n", "a.csv, line 2 cannot be read: field larger than"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_examples(tmp_path / name)


def test_labels_by_name_and_labels_that_no_class_has(training, tmp_path):
    folder = copied(training, tmp_path)
    changed(folder / "config.json", id2label={"0": "BAD", "1": "GOOD"}, label2id={"BAD": 0, "GOOD": 1})
    data = tmp_path / "named.tsv"
    data.write_text("GOOD\ta good film\nBAD\tso bad\n")
    made = text_trainer(folder, data, cpu=True)
    assert [row["labels"] for row in made.eval_dataset] == [1, 0]
    for label in ("2", "great"):
        data.write_text(f"{label}\ta film\n")
        with pytest.raises(ValueError, match="is none of the model's"):
            text_trainer(folder, data, cpu=True)
