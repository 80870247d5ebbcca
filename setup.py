"""Packages are listed by hand: plugins/ and analysis/ install inside headdynamics, never beside it."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "headdynamics/__init__.py").read_text(encoding="utf-8"), re.M)[1]

HF = ["transformers>=4.57", "accelerate>=1.1", "safetensors>=0.4"]
FAIRSEQ = ["ve-fairseq==0.12.3; python_version >= '3.11'", "fairseq==0.12.2; python_version < '3.11'", "sacrebleu>=2.3"]
PLOTLY = ["plotly>=6"]  # of its wheel: plotly.min.js, which the dashboard serves and the report holds
ANALYSIS = ["h5py>=3.10", "h5netcdf>=1.3", "xarray>=2024.1", "scipy>=1.11", "matplotlib>=3.8", "rich>=13"]
TENSORBOARD = ["tensorboard>=2.17", *ANALYSIS, *PLOTLY]  # the tab answers what the commands answer
EXPORT = ["pyarrow>=14"]
REPORT = ANALYSIS + PLOTLY
NOTEBOOK = ["ipykernel>=6", "nbclient>=0.8", "nbformat>=5.7"]
TEST = ["pytest>=8", "pytest-timeout", "ruff", "mypy", "sacrebleu>=2.3", "selenium>=4.20"]

setup(
    name="headdynamics",
    version=VERSION,
    description="Which attention heads matter, and when in training that settles",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        "headdynamics",
        "headdynamics.record",
        "headdynamics.sharing",
        "headdynamics.surgery",
        "headdynamics.tasks",
        "headdynamics.plugins",
        "headdynamics.plugins.tensorboard",
        "headdynamics.analysis",
    ],
    package_dir={"headdynamics.plugins": "plugins", "headdynamics.analysis": "analysis"},
    install_requires=["torch>=2.2", "numpy>=1.24", "h5py>=3.10"],
    extras_require={
        "fairseq": FAIRSEQ,
        "hf": HF,
        "tensorboard": TENSORBOARD,
        "analysis": ANALYSIS,
        "export": ANALYSIS + EXPORT,
        "report": REPORT,
        "ray": ["ray>=2.9"],
        "dev": HF + TENSORBOARD + REPORT + EXPORT + NOTEBOOK + TEST,
    },
    package_data={"headdynamics.analysis": ["web/*"], "headdynamics.plugins.tensorboard": ["*.js"]},
    entry_points={
        "console_scripts": ["headdynamics = headdynamics.__main__:main"],
        "tensorboard_plugins": ["headdynamics = headdynamics.plugins.tensorboard.loader:Loader"],
    },
)
