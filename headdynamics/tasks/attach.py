"""Attach to fairseq-train."""

from headdynamics.plugins.fairseq_trainer import install

install()
