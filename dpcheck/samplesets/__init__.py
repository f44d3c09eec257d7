"""Sample-set analysis: who depends on whom, read off the captured graph."""

from dpcheck.samplesets.analysis import Analysis, analyse, parameter_facts

__all__ = ["Analysis", "analyse", "parameter_facts"]
