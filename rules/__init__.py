"""The rules. This is the only table from codes to rules; the first that claims an event reports it."""

from __future__ import annotations

import difflib

from dpcheck.rules.backward_mixing import BackwardMixing
from dpcheck.rules.bag_offsets import BagOffsets
from dpcheck.rules.batch_norm import BatchNorm
from dpcheck.rules.batch_size_dependence import BatchSizeDependence
from dpcheck.rules.batch_statistics import BatchStatistics
from dpcheck.rules.cross_sample_product import CrossSampleProduct
from dpcheck.rules.data_dependent_branch import DataDependentBranch
from dpcheck.rules.data_written_buffer import DataWrittenBuffer
from dpcheck.rules.frequency_scaled_embedding import FrequencyScaledEmbedding
from dpcheck.rules.functional_batch_norm import FunctionalBatchNorm
from dpcheck.rules.in_batch_loss import InBatchLoss
from dpcheck.rules.max_norm_embedding import MaxNormEmbedding
from dpcheck.rules.moved_samples import MovedSamples
from dpcheck.rules.no_gradient_path import NoGradientPath
from dpcheck.rules.not_captured import NotCaptured
from dpcheck.rules.parameter_written_in_forward import ParameterWrittenInForward
from dpcheck.rules.samples_mix import SamplesMix
from dpcheck.rules.sparse_embedding import SparseEmbedding
from dpcheck.rules.state_between_calls import StateBetweenCalls
from dpcheck.rules.unproven_op import UnprovenOp

from dpcheck.errors import DpcheckError
from dpcheck.registry import Rule

RULES: tuple[Rule, ...] = (
    BatchNorm(),
    FunctionalBatchNorm(),
    FrequencyScaledEmbedding(),
    BagOffsets(),
    BatchSizeDependence(),
    StateBetweenCalls(),
    DataDependentBranch(),
    BatchStatistics(),
    CrossSampleProduct(),
    InBatchLoss(),
    MovedSamples(),
    SamplesMix(),
    BackwardMixing(),
    NoGradientPath(),
    DataWrittenBuffer(),
    MaxNormEmbedding(),
    ParameterWrittenInForward(),
    SparseEmbedding(),
    UnprovenOp(),
    NotCaptured(),
)


def by_code(wanted: str) -> Rule:
    """The rule with a code or a name.

    Raises:
        DpcheckError: naming the nearest code or name.
    """
    table = {key: rule for rule in RULES for key in (rule.code, rule.name)}
    found = table.get(wanted.upper()) or table.get(wanted.lower())
    if found is None:
        near = difflib.get_close_matches(wanted, table, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DpcheckError(f"there is no rule {wanted!r}", next=f"{hint}`dpcheck rule --all` lists the rules")
    return found
