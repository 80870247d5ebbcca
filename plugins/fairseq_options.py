"""`--hd-*`: options of ours on fairseq-train, in its own config, so that they reach every worker process."""

# No `from __future__ import annotations` here: fairseq reads the fields' types as types, not as text.
import argparse
import functools
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from headdynamics.names import meant
from headdynamics.online import WINDOW


def _option(default: Any, text: str) -> Any:
    told = "" if isinstance(default, bool) or default == "" else f" (default: {default})"
    return field(default=default, metadata={"help": f"headdynamics: {text}{told}"})


@dataclass
class HeadDynamicsOptions:
    """What can be asked of the instrument; every field is a `--hd-*` flag (fairseq's dataclass convention)."""

    hd_every: str = _option(
        "epoch",
        "when to snapshot: epoch, log (updates 1, 2, 4...), a number of updates, or never: only at the end, and with "
        "--hd-online not at all",
    )
    hd_early: bool = _option(False, "also at 1/8, 1/4 and 1/2 of the first epoch")
    hd_examples: int = _option(1000, "examples for head importance, the same ones at each snapshot")
    hd_score_examples: int = _option(1000, "examples for the pruning curve, the same ones at each snapshot; 0: all")
    hd_subset: str = _option("valid", "data subset that both are drawn from")
    hd_score: str = _option("loss", "score of the curve: loss, nll_loss, ppl, bleu, or any value that the task reports")
    hd_fractions: str = _option(
        "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1", "pruned fractions of the curve; or knee: how many heads may go"
    )
    hd_knee_tolerance: float = _option(0.01, "the knee: share of the unpruned score that may be lost")
    hd_knee_confidence: float = _option(0.95, "the knee: how sure that has to be")
    hd_estimator: str = _option("example", "I(h): example (Michel et al. 2019), token, batch, signed, bertology")
    hd_reduction: str = _option("mean", "an example's loss: mean or sum over its target tokens")
    hd_orders: str = _option("importance,random-1,random-2,random-3", "pruning orders of the curve: docs/orders.md")
    hd_ablate: str = _option("", "also without each head in turn, with tests: one, all-but-one, or both with a comma")
    hd_budget: float = _option(
        0.0, "share of training time for snapshots (0.05: a twentieth), by taking fewer examples; 0: always all"
    )
    hd_online: bool = _option(False, "also I(h) of every training step, from training's own backward pass")
    hd_online_estimator: str = _option(
        "example", "of --hd-online: example (of each alone), or batch (of the sums over batches: W_O's gradient)"
    )
    hd_online_window: int = _option(WINDOW, "updates that make one row of --hd-online")
    hd_file: str = _option("", "run file (default: SAVE_DIR/headdynamics.h5)")
    hd_tensorboard: str = _option(
        "", "TensorBoard folder, or none (default: --tensorboard-logdir, else SAVE_DIR/tensorboard)"
    )
    hd_save_weights: bool = _option(False, "save the weights of each snapshot (safetensors) beside the run file")
    hd_seed: int = _option(0, "seed of the draw of examples")
    hd_strict: bool = _option(False, "end the training when the instrument fails")
    hd_off: bool = _option(False, "do nothing")
    hd_user_dir: str = _option("", "your own --user-dir, imported as well")


def add_to_fairseq() -> None:
    """Extend fairseq's CommonConfig by our fields, where both its parser and its config look them up."""
    import fairseq.options
    from fairseq.dataclass.configs import CommonConfig, FairseqConfig
    from fairseq.dataclass.initialize import hydra_init

    extended: Any = dataclass(type("CommonConfig", (HeadDynamicsOptions, CommonConfig), {"__module__": __name__}))
    fairseq.options.CommonConfig = extended
    common = FairseqConfig.__dataclass_fields__["common"]
    common.type = extended
    common.default = extended if isinstance(common.default, type) else extended()  # 0.12.2 keeps instances
    FairseqConfig.common = common.default  # older omegaconf reads the class's attribute
    FairseqConfig.__annotations__["common"] = extended
    hydra_init()
    if not hasattr(fairseq.options.parse_args_and_arch, "headdynamics"):
        fairseq.options.parse_args_and_arch = _suggesting(fairseq.options.parse_args_and_arch)


def _suggesting(parse: Any) -> Any:
    """Where fairseq's parser does not know an option that looks like ours, its message has the nearest of ours."""
    ours = [f"--{f.name.replace('_', '-')}" for f in fields(HeadDynamicsOptions)]

    @functools.wraps(parse)
    def wrapped(parser: Any, *given: Any, **how: Any) -> Any:
        refuse = parser.error

        def error(message: str) -> None:
            strays = [word.partition("=")[0] for word in message.split() if word.startswith("--hd")]
            if message.startswith("unrecognized arguments"):
                message += "".join(meant(stray, ours) for stray in strays)
            refuse(message)

        parser.error = error
        return parse(parser, *given, **how)

    marked: Any = wrapped
    marked.headdynamics = True
    return marked


def read(common: Any) -> HeadDynamicsOptions:
    """Our options out of `cfg.common`; defaults where a config (hydra's) does not have them."""
    return HeadDynamicsOptions(**{f.name: common.get(f.name, f.default) for f in fields(HeadDynamicsOptions)})


def own_user_dir() -> str | None:
    """The user's own user-dir, wanted before fairseq parses: from the command line (spawned workers keep it)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--hd-user-dir")
    known, rest = parser.parse_known_args(sys.argv[1:])
    hydra = (word.partition("=")[2] for word in rest if word.lstrip("+").startswith("common.hd_user_dir="))
    return known.hd_user_dir or next(hydra, None)
