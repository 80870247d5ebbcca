"""fairseq-hydra-train that knows `common.hd_*` from the start: `python -m headdynamics.plugins.fairseq_hydra ...`.

hydra 1.0, which fairseq 0.12.2 asks for, reads all options before fairseq opens any user-dir, and then refuses those
it has not heard of, also with a `+`. From hydra 1.1 on `fairseq-hydra-train ... +common.hd_*=` is enough.
"""

from __future__ import annotations

from .fairseq_trainer import install

if __name__ == "__main__":
    from fairseq_cli.hydra_train import cli_main

    install()
    cli_main()
