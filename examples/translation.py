"""Train a small German-English Transformer with fairseq-train while headdynamics watches, then translate.

The command is a plain `fairseq-train`; `--user-dir headdynamics` is all that attaches the instrument.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
from itertools import chain
from pathlib import Path

import data

WIDTH, INNER = "128", "512"
TRAINING = {
    "--optimizer": "adam",
    "--adam-betas": "(0.9, 0.98)",
    "--lr": "0.003",
    "--lr-scheduler": "inverse_sqrt",
    "--warmup-updates": "300",
    "--criterion": "label_smoothed_cross_entropy",
    "--label-smoothing": "0.1",
    "--max-tokens": "2000",
    "--num-workers": "0",
    "--seed": "1",
    "--log-interval": "100",
}
SWITCHES = ["--cpu", "--encoder-normalize-before", "--decoder-normalize-before", "--share-all-embeddings"]


def model(layers: str, heads: str) -> dict[str, str]:
    """Options of a Transformer with `layers` + `layers` layers of `heads` heads: 3 and 4 make 36 heads in all."""
    sizes = {"layers": layers, "embed-dim": WIDTH, "ffn-embed-dim": INNER, "attention-heads": heads}
    sides = {f"--{side}-{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    return {"--arch": "transformer", **sides, "--dropout": "0.1"}


def command(binarised: Path, save_dir: Path, options: argparse.Namespace) -> list[str]:
    """The whole fairseq-train command line, as a list of words."""
    settings = {"--source-lang": "de", "--target-lang": "en", **model(options.layers, options.heads), **TRAINING}
    settings |= {"--max-epoch": options.epochs, "--save-dir": str(save_dir)}
    settings["--log-format"] = "tqdm" if sys.stderr.isatty() else "simple"  # a progress bar, where it can be seen
    if not options.hd_off:
        settings |= {
            "--user-dir": "headdynamics",
            "--hd-every": options.hd_every,
            "--hd-examples": options.hd_examples,
            "--hd-score": options.hd_score,
            "--hd-score-examples": options.hd_score_examples,
            "--hd-fractions": options.hd_fractions,
            "--hd-orders": options.hd_orders,
            # How the score's BLEU decodes: greedily, since a snapshot translates once for each point of the curve.
            "--eval-bleu-args": '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}',
            "--eval-bleu-remove-bpe": "sentencepiece",
        }
    switches = [*SWITCHES, *([] if options.keep_checkpoints else ["--no-epoch-checkpoints"])]
    program = Path(sys.executable).with_name("fairseq-train")
    return [str(program), str(binarised), *chain.from_iterable(settings.items()), *switches]


def train(binarised: Path, save_dir: Path, options: argparse.Namespace) -> None:
    """Print the command and run it; a failed run ends this program with fairseq's own status."""
    argv = command(binarised, save_dir, options)
    print("$", shlex.join(["fairseq-train", *argv[1:]]), flush=True)
    # fairseq's own deprecation warnings would bury the log that one wants to read.
    done = subprocess.run(argv, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if done.returncode:
        sys.exit(done.returncode)


def translate(save_dir: Path, binarised: Path, bpe: Path, sentences: list[str]) -> list[str]:
    """Translate with the best checkpoint (beam 4)."""
    from fairseq.models.transformer import TransformerModel
    from headdynamics.plugins.fairseq_trainer import allow_fairseq_checkpoints

    allow_fairseq_checkpoints()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # it prints the whole configuration
    model = TransformerModel.from_pretrained(
        str(save_dir),
        "checkpoint_best.pt",
        data_name_or_path=str(binarised.resolve()),
        bpe="sentencepiece",
        sentencepiece_model=str(bpe / "bpe.model"),
    ).eval()
    return model.translate(sentences, beam=4, max_len_a=1.5, max_len_b=10)


def show(folder: Path, save_dir: Path, binarised: Path, test_sentences: int) -> None:
    """Print a few test sentences with their translations, and test BLEU."""
    import sacrebleu

    german, english = (
        (folder / "help.de-en" / f"test.{code}").read_text(encoding="utf-8").splitlines()[:test_sentences]
        for code in ("de", "en")
    )
    output = translate(save_dir, binarised, folder / "bpe.de-en", german)
    for source, reference, hypothesis in list(zip(german, english, output, strict=True))[:5]:
        print(f"\n  German      {source}\n  translated  {hypothesis}\n  reference   {reference}")
    metric = sacrebleu.BLEU()
    print(f"\n{metric.corpus_score(output, [english])} on {len(output)} test sentences\n{metric.get_signature()}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data.data_folder(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--save-dir", type=Path, default=Path("runs/translation"), metavar="DIR")
    parser.add_argument("--epochs", default="3")
    parser.add_argument("--layers", default="3", help="of the encoder and of the decoder (default: %(default)s)")
    parser.add_argument("--heads", default="4", help="of each attention (default: %(default)s)")
    parser.add_argument("--keep-checkpoints", action="store_true", help="keep a checkpoint of each epoch")
    parser.add_argument("--test-sentences", type=int, default=300)
    parser.add_argument("--hd-every", default="100", help="updates between snapshots (default: %(default)s)")
    parser.add_argument("--hd-examples", default="200", help="sentences for I(h) (default: %(default)s)")
    parser.add_argument("--hd-score", default="bleu", help="bleu, or loss: faster (default: %(default)s)")
    parser.add_argument("--hd-score-examples", default="120", help="sentences for the curve (default: %(default)s)")
    parser.add_argument("--hd-fractions", default="0,0.2,0.4,0.6,0.8", help="default: %(default)s")
    parser.add_argument("--hd-orders", default="importance,random-1", help="default: %(default)s")
    parser.add_argument("--hd-off", action="store_true", help="train without the instrument")
    return parser.parse_args()


def main() -> None:
    options = parse()
    try:
        binarised = data.translation(options.data)
    except (RuntimeError, ValueError) as trouble:
        sys.exit(f"[data] {trouble}")
    train(binarised, options.save_dir, options)
    show(options.data, options.save_dir, binarised, options.test_sentences)


if __name__ == "__main__":
    main()
