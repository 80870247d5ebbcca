"""The cells of the matrix: one Python, one fairseq, one transformers, one torch each."""

from __future__ import annotations

from dataclasses import dataclass

NUMPY_1 = ("numpy<2", "pyarrow<26")  # torch before 2.3 is built against numpy 1; pyarrow 26 needs 2 and does not say so


@dataclass(frozen=True)
class Cell:
    """Versions that are put together; everything else is the newest that goes with them."""

    python: str
    fairseq: str
    transformers: str
    torch: str
    further: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `CELLS=` and the folder under .matrix/ call it."""
        return f"py{self.python}-transformers{self.transformers}-torch{self.torch}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is asked of the installer beside headdynamics itself."""
        pins = (self.fairseq, f"transformers=={self.transformers}", f"torch=={self.torch}")
        return (*pins, *self.further)


RELEASE = "fairseq==0.12.2"
WHEEL = "ve-fairseq==0.12.3"

# Newest first. The oldest torch is the oldest that the transformers beside it accepts; the newest torch and the newest
# transformers are the newest that the Python allows (beside torch 2.6: that it did when they were run).
CELLS = (
    Cell("3.12", WHEEL, "5.24.0", "2.15.0"),
    Cell("3.11", WHEEL, "5.24.0", "2.15.0"),
    Cell("3.10", RELEASE, "5.20.2", "2.14.1"),
    Cell("3.12", WHEEL, "4.57.6", "2.15.0"),
    Cell("3.11", WHEEL, "4.57.6", "2.15.0"),
    Cell("3.10", RELEASE, "4.57.6", "2.14.1"),
    Cell("3.12", WHEEL, "5.23.0", "2.6.0"),
    Cell("3.11", WHEEL, "5.23.0", "2.6.0"),
    Cell("3.10", RELEASE, "5.20.2", "2.6.0"),
    Cell("3.12", WHEEL, "4.57.6", "2.2.2", NUMPY_1),
    Cell("3.11", WHEEL, "4.57.6", "2.2.2", NUMPY_1),
    Cell("3.10", RELEASE, "4.57.6", "2.2.2", NUMPY_1),
)
