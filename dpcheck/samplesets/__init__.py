"""Sample-set analysis: who depends on whom, read off the captured graph."""

from dpcheck.samplesets.analysis import Analysis, analyse

__all__ = ["Analysis", "analyse"]
