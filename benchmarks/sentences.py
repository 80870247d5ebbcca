"""MiniLM (6 x 12 heads, 384 wide) and real sentences for the benchmarks: Rotten Tomatoes, `DATA/sentiment`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from side_by_side import DATA


def minilm() -> tuple[torch.nn.Module, Any]:
    """The model in eval mode, with a classifier of seeded random weights, and its tokenizer."""
    from transformers import AutoTokenizer, BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(DATA / "minilm", num_labels=2).eval()
    return model, AutoTokenizer.from_pretrained(DATA / "minilm")


def drawn(n: int, split: str = "valid") -> list[tuple[int, str]]:
    """`n` labelled sentences, drawn by seed."""
    lines = (DATA / f"sentiment/{split}.tsv").read_text(encoding="utf-8").splitlines()
    chosen = np.random.default_rng(0).choice(len(lines), n, replace=False)
    return [(int(label), text) for label, text in (lines[i].split("\t", 1) for i in chosen)]


def encoded(tokenizer: Any, rows: list[tuple[int, str]], by_length: bool = False) -> list[dict[str, Any]]:
    """One example each: input_ids, attention_mask and labels, as a data set gives them."""
    tokens = tokenizer([text for _, text in rows], truncation=True, max_length=64, return_token_type_ids=False)
    examples = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, (label, _) in zip(tokens["input_ids"], tokens["attention_mask"], rows, strict=True)
    ]
    return sorted(examples, key=lambda example: len(example["input_ids"])) if by_length else examples


def batched(tokenizer: Any, examples: list[dict[str, Any]], size: int) -> list[dict[str, torch.Tensor]]:
    """Batches padded to their longest sentence."""
    parts = [examples[i : i + size] for i in range(0, len(examples), size)]
    return [dict(tokenizer.pad(part, return_tensors="pt")) for part in parts]
