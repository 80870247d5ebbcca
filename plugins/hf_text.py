"""A Trainer for the command line: the model of a checkpoint, its tokenizer, and sentences with labels from a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments

from headdynamics.foreign import read_config, settings


def text_trainer(
    folder: Path,
    data: Path,
    *,
    tokenizer: Path | None = None,
    text: Sequence[str] = (),
    label: str = "",
    max_length: int | None = None,
    batch_size: int = 64,
    cpu: bool = False,
    seed: int | None = None,
    learning_rate: float | None = None,
) -> Trainer:
    """A Trainer to evaluate the checkpoint in `folder` on `data` (tsv, csv or jsonl); nothing it holds is run.

    Args:
        folder: a checkpoint with config.json.
        data: one example a line.
        tokenizer: a folder; default: the checkpoint.
        text: its columns of text, by the names in the first line of `data` (jsonl: keys), or by number, from 1, where
            it has no names. Default: `text`, or the second of two columns without names.
        label: the same. Default: `label`, or the first of two columns without names.
        max_length: longer texts are cut; default: the tokenizer's own limit.
        batch_size: examples a batch.
        cpu: do not use a GPU.
        seed: of the training; it and the learning rate are part of a run's signature, and no file of plain data in
            a checkpoint has them. Default: not known.
        learning_rate: the same.

    Raises:
        ValueError: model, tokenizer or data cannot be used; the message says why.

    """
    model = build_model(folder)
    words = load_tokenizer(tokenizer or folder)
    texts, labels = read_examples(data, text, label)
    encoded = words(*texts, truncation=True, max_length=max_length)
    numbers = [_label(value, model.config) for value in labels]
    columns = {**encoded, "labels": numbers}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(numbers))]
    settings = TrainingArguments(
        str(folder.parent), per_device_eval_batch_size=batch_size, use_cpu=cpu, report_to=[], disable_tqdm=True
    )
    trainer = Trainer(model, settings, eval_dataset=rows, data_collator=DataCollatorWithPadding(words))
    trainer.args.seed, trainer.args.learning_rate = seed, learning_rate  # type: ignore[assignment]
    return trainer


def build_model(folder: Path) -> PreTrainedModel:
    """The classifier that config.json names, if it is one of transformers' own.

    Raises:
        ValueError: it is not, or the config asks for code from elsewhere.

    """
    told = read_config(folder)
    try:
        name = str(told["architectures"][0])
    except (LookupError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not name the model's architecture ({error!r})") from error
    if any(key == "quantization_config" and value for key, value in settings(told)):
        raise ValueError(f"{folder} is quantized: its heads' gradients cannot be had")
    made = getattr(transformers, name, None) if name.endswith("ForSequenceClassification") else None
    if not (isinstance(made, type) and issubclass(made, PreTrainedModel)):
        raise ValueError(
            f"{name} is no classifier of transformers (...ForSequenceClassification): for any other model use "
            "headdynamics.backfill(trainer, ...) in Python"
        )
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        model: PreTrainedModel = made.from_pretrained(str(folder), config=config, dtype="auto", local_files_only=True)
    except Exception as error:  # every library below has its own
        raise ValueError(f"{folder} cannot be loaded as {name}: {error}") from error
    return model


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer from a folder; ValueError where there is none."""
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} has no tokenizer (no tokenizer_config.json): name its folder by --tokenizer DIR")
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def read_examples(path: Path, text: Sequence[str] = (), label: str = "") -> tuple[list[list[str]], list[Any]]:
    """(the texts of each text column, the labels) of a tsv, csv or jsonl file.

    Raises:
        ValueError: the file is of another kind, cannot be read as such, lacks a column, or is empty.

    """
    table = _table(path)
    wanted = [*(text or ["text"]), label or "label"]
    names, rows, at = table[0], table[1:], []
    if set(wanted) <= set(names):
        at = [names.index(name) for name in wanted]
    elif path.suffix != ".jsonl" and all(word.isdigit() and 0 < int(word) <= len(names) for word in wanted):
        rows, at = table, [int(word) - 1 for word in wanted]
    elif path.suffix != ".jsonl" and not text and not label and len(names) == 2:
        rows, at = table, [1, 0]
    else:
        lost = next(word for word in wanted if word not in names)
        raise ValueError(
            f"{path} has no column {lost!r} but {', '.join(map(str, names))[:200]}: see --text-columns, --label-column"
        )
    for number, row in enumerate(rows, 1):
        if len(row) <= max(at) or any(row[i] is None for i in at):
            raise ValueError(f"{path}: example {number} has too few columns")
    *texts, labels = [[row[i] for row in rows] for i in at]
    if not labels:
        raise ValueError(f"{path} has no examples")
    return [[str(value) for value in column] for column in texts], labels


def _table(path: Path) -> list[list[Any]]:
    """Lines as lists; of a jsonl file the keys of its first line come first."""
    if path.suffix not in (".tsv", ".csv", ".jsonl"):
        raise ValueError(f"{path}: give a .tsv, .csv or .jsonl file")
    raw = path.read_bytes()
    try:
        lines = io.StringIO(raw.decode("utf-8"), newline="")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8: save the file as UTF-8 text") from error
    table = _objects(lines, path) if path.suffix == ".jsonl" else _cells(lines, path)
    if not table:
        raise ValueError(f"{path} is empty")
    return table


def _objects(lines: io.StringIO, path: Path) -> list[list[Any]]:
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is not JSON: {getattr(error, 'msg', error)}") from error
    if not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path}: every line has to be an object with keys")
    return [list(found[0]), *([row.get(name) for name in found[0]] for row in found)] if found else []


def _cells(lines: io.StringIO, path: Path) -> list[list[Any]]:
    tabs = path.suffix == ".tsv"
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    try:
        return list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} cannot be read: {error}") from error


def _label(value: Any, config: Any) -> int | float:
    """A class by number or by the name that the config gives it; a real number for regression."""
    named = {str(name): number for name, number in (config.label2id or {}).items()}
    try:
        if config.num_labels == 1:
            return float(value)
        found = named[str(value)] if str(value) in named else int(value)
    except ValueError:
        raise ValueError(f"label {value!r} is none of the model's {', '.join(named)}, nor a number") from None
    if not 0 <= found < config.num_labels:
        raise ValueError(f"label {value!r} is none of the model's {config.num_labels} classes")
    return found
