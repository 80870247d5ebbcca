"""`python -m tests.faults [KIND ...]`: every kind of fault, so many times, and docs/faults.md from the counts.

What was tried before counts, so that a runner that was stopped goes on; `--fresh` forgets it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / room) for room in ("core", "plugins"))]

import counts  # noqa: E402
import faults_page  # noqa: E402
from kinds import FAULTS  # noqa: E402


def main() -> int:
    """Try the faults, and draw the page; 1 where something was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(FAULTS)}; default: all")
    parser.add_argument("--times", type=int, help="how many of each; default: the full count")
    parser.add_argument("--fresh", action="store_true", help="forget what was tried before")
    parser.add_argument("--place", type=Path, help="where to work; what was lost is kept there")
    parser.add_argument("--try", dest="only_try", action="store_true", help="keep no counts and write no page")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    place = options.place or Path(tempfile.mkdtemp(prefix="headdynamics-faults-"))
    place.mkdir(parents=True, exist_ok=True)
    kept, lost = place / "measured" if options.only_try else counts.PLACE, 0
    for kind in options.kinds or FAULTS:
        fault = FAULTS[kind]
        found = {"tried": 0, "lost": 0} if options.fresh else counts.read(kind, kept)
        for now in fault.tried(kind, place, options.times or fault.times, found):
            found = now
            counts.write(kind, found, kept)
            if not options.only_try:  # at once: the page never says other than the counts, whenever this is stopped
                faults_page.DOCS.write_text(faults_page.page())
            print(json.dumps(found), flush=True)
        lost += found["lost"] * fault.promised
        print(f"{kind}: tried {found['tried']}, lost {found['lost']}", flush=True)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
