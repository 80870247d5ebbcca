"""What an import costs: nothing for the package, torch and numpy for the core."""

import subprocess
import sys

import pytest

import headdynamics

HEAVY = "torch numpy h5py transformers fairseq tensorboard matplotlib scipy sacrebleu rich tqdm xarray".split()
CORE = "heads gates losses estimators scores orders curve stillness schedule signature snapshot observer record".split()
CORE += ["record.hdf5", "record.layout", "record.changes", "record.memory", "checkpoints", "surgery"]
CORE += ["ablation", "best", "resampling", "significance", "keep", "points", "knee", "surgery.lent"]


def loaded(code):
    """Which of HEAVY a fresh python has after `code`."""
    code = f"import sys\nbare = set(sys.modules)\n{code}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_imports_nothing():
    assert loaded("import headdynamics") == set()
    assert loaded("import headdynamics.schema") == set()


def test_the_core_imports_torch_and_numpy():
    modules = "\n".join(f"import headdynamics.{name}" for name in CORE)
    assert loaded(modules) == loaded("import torch, numpy") >= {"torch", "numpy"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'headdynamics' has no attribute 'improtance'"):
        headdynamics.improtance  # noqa: B018


@pytest.mark.parametrize("name", [n for n, home in headdynamics._HOME.items() if "." not in home])
def test_public_names_exist(name):
    assert name in headdynamics.__all__
    assert getattr(headdynamics, name) is not None
