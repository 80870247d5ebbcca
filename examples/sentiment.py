"""Fine-tune MiniLM on Rotten Tomatoes with the Hugging Face Trainer while headdynamics watches."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: everything is in the data folder

import data  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


class Sentences(torch.utils.data.Dataset):
    """One split as tokenized sentences with labels; at most 64 tokens each."""

    def __init__(self, path: Path, tokenizer) -> None:
        self.labels, self.texts = data.read_tsv(path)
        self.tokens = tokenizer(self.texts, truncation=True, max_length=64)["input_ids"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def accuracy(prediction) -> dict[str, float]:
    """`compute_metrics`: the share of sentences whose label is right."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def build_trainer(folder: Path, encoder: Path, run_dir: Path, epochs: float, keep: bool = False) -> Trainer:
    """A plain Trainer: nothing here knows of headdynamics."""
    set_seed(1)  # before the model: its classifier starts from random weights
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    settings = TrainingArguments(
        output_dir=str(run_dir),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=5e-5,
        warmup_steps=50,
        eval_strategy="epoch",
        save_strategy="epoch" if keep else "no",
        logging_steps=50,
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=True,
        seed=1,
    )
    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2),
        args=settings,
        train_dataset=Sentences(folder / "train.tsv", tokenizer),
        eval_dataset=Sentences(folder / "valid.tsv", tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )


def baseline(folder: Path) -> float:
    """Test accuracy of TF-IDF with logistic regression (its settings the best of 12 on the validation sentences)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    labels, texts = data.read_tsv(folder / "train.tsv")
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=500))
    model.fit(texts, labels)
    labels, texts = data.read_tsv(folder / "test.tsv")
    return float(model.score(texts, labels))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=data.data_folder(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--save-dir", type=Path, default=Path("runs/sentiment"), metavar="DIR")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--keep-checkpoints", action="store_true", help="keep a checkpoint of each epoch")
    parser.add_argument("--hd-every", type=int, default=25, help="updates between snapshots (default: %(default)s)")
    parser.add_argument("--hd-examples", type=int, default=200, help="for I(h) (default: %(default)s)")
    parser.add_argument("--hd-score-examples", type=int, default=130, help="for the curve (default: %(default)s)")
    parser.add_argument("--hd-off", action="store_true", help="train without the instrument")
    return parser.parse_args()


def main() -> None:
    options = parse()
    try:
        folder, encoder = data.sentiment(options.data)
    except (RuntimeError, ValueError) as trouble:
        sys.exit(f"[data] {trouble}")
    trainer = build_trainer(folder, encoder, options.save_dir, options.epochs, options.keep_checkpoints)
    if not options.hd_off:
        import headdynamics as hd

        hd.attach(
            trainer,
            str(options.save_dir / "headdynamics.h5"),
            score="accuracy",
            every=options.hd_every,
            examples=options.hd_examples,
            score_examples=options.hd_score_examples,
            fractions=[0, 0.2, 0.4, 0.6, 0.8],
            orders=["importance", "random-1", "random-2", "random-3"],
        )
    trainer.train()
    test = trainer.predict(Sentences(folder / "test.tsv", trainer.data_collator.tokenizer))
    print(f"\ntest accuracy: MiniLM {test.metrics['test_accuracy']:.3f}, TF-IDF baseline {baseline(folder):.3f}")


if __name__ == "__main__":
    main()
