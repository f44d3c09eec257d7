"""Every step by itself, in several layouts: no claim is refuted, and every transfer rule is reached."""

from __future__ import annotations

from random import Random

import pytest
from judge import Judgement, captured, judge
from programs import LOSSES, UNPROVEN, Program, batch_of, build, placed
from steps import STEPS

from dpcheck.samplesets.op import RULES, packet_of

# Kernels of other devices: never dispatched on the CPU.
ELSEWHERE = {
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_cudnn_attention_backward",
    "_fused_rms_norm", "_fused_rms_norm_backward", "cudnn_batch_norm", "cudnn_batch_norm_backward",
}  # fmt: skip


def _alone(name: str, tidy: bool) -> Program:
    return Program((placed(Random(name), name, tidy),), "square")


@pytest.mark.long
def test_every_rule_is_reached() -> None:
    programs = [_alone(name, tidy) for name in STEPS for tidy in (True, False)]
    programs += [Program((), loss) for loss in (*LOSSES, *UNPROVEN)]
    seen: set[str] = set()
    for program in programs:
        seen |= {packet_of(n.target) for n in captured(build(program), batch_of(5, 1)).graph.graph.nodes}
    assert RULES.keys() - seen == ELSEWHERE


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_every_step_by_itself(part: int) -> None:
    wrong = {}
    for name in sorted(STEPS)[part::10]:
        for tidy in (True, False):
            program = _alone(name, tidy)
            judgement: Judgement = judge(program)
            if judgement.falsified:
                wrong[str(program)] = judgement.falsified
    assert not wrong
