"""Run code in a Python where some libraries cannot be imported."""

import subprocess
import sys

BANNED = ("torch", "fairseq", "transformers", "tensorboard")
# Not sys.modules[name] = None: scipy asks sys.modules whether torch is there and takes None for it.
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run_without(banned, code, *arguments):
    code = f"BANNED = {tuple(banned)!r}\n{BLOCKER}\n{code}"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
