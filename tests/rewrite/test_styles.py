"""Model files in many styles: fixed in source, loaded in a new process, and clean."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import pytest
from styles import STYLES

import dpcheck
from dpcheck.rewrite.afresh import Fresh, load_afresh
from dpcheck.rewrite.plan import SourceFix, plan
from dpcheck.target import load

# What must be in the new text of a style, and what must be there no longer.
EXPECTED = {
    "sequential": ("    nn.GroupNorm(4, 16),  # as everybody does\n", "BatchNorm"),
    "keywords over several lines": ("num_groups=2, num_channels=8,  # the width\n            eps=1e-3,\n", "momentum"),
    "helper with several widths": ("nn.GroupNorm(math.gcd(2, outside), outside, 1e-5)", "BatchNorm"),
    "loop and attribute": ("nn.GroupNorm(math.gcd(2, self.widths[i + 1]), self.widths[i + 1])", "BatchNorm"),
    "comprehension": ("[nn.GroupNorm(4, 16) for _ in range(2)]", "import math"),
    "aliased class": ("Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), Flatten()", "BN(8)"),
    "aliased module": ("tnn.GroupNorm(2, 8)", "BatchNorm"),
    "full path": ("torch.nn.GroupNorm(2, 8)", "from torch"),
    "default argument": ("norm_layer=GroupNorm2d", "BatchNorm"),
    "norm_layer is None": ("            norm_layer = GroupNorm2d\n", "(self, norm=GroupNorm2d)"),
    "partial": ("norm = partial(GroupNorm2d, eps=1e-3, momentum=0.01)", "BatchNorm"),
    "configuration": ('{"batch": GroupNorm2d, "instance": nn.InstanceNorm2d', "BatchNorm"),
    "unpacked options": ("GroupNorm2d(8, **options)", "BatchNorm"),
    "subclass": ("class NormAct(GroupNorm2d):\n", "BatchNorm"),
    "function": ("F.group_norm(\n            x, num_groups=2,  # again\n        )", "batch_norm"),
    "computed width": ("nn.GroupNorm(6, make_divisible(16 * scale))", "import math"),
    "lambda": ("nn.GroupNorm(math.gcd(2, width), width, affine=True)", "track_running_stats"),
    "lazy": ("nn.GroupNorm(2, 8, eps=1e-3)", "LazyBatchNorm"),
    "copied layers": ("nn.GroupNorm(1, 3)", "BatchNorm"),
    "embedding": ("nn.Embedding(9, 8, None, None, 2.0, False, False)", "scale_grad_by_freq"),
    "unused layer": ("4).requires_grad_(False)  # for later\n", "import dpcheck"),
    "instance norm": ("nn.InstanceNorm2d(8),", "track_running_stats"),
    "batch norm of its own": ("F.group_norm(x, num_groups=math.gcd(2, x.shape[1]), weight=", "F.batch_norm"),
    "handed to a library": ("skip_init(GroupNorm2d, 8)", "BatchNorm"),
    "name in a string, in a function": (
        "return dpcheck.fix(nn.Sequential(\n        nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 36, 3)\n"
        "    ), loss_fn, sample_batch(), unsafe=True).model\n",
        "GroupNorm",
    ),
    "name in a string, at the top": (
        "\nmodel = dpcheck.fix(model, loss_fn, sample_batch(), unsafe=True).model\n",
        "Group",
    ),
}

# Lines that go where it is not one for every fix: a call over several lines, and one of two lines.
EXPECTED_CHANGES = {"keywords over several lines": 3, "function": 6, "name in a string, in a function": 2}


@dataclass(frozen=True)
class Fixed:
    before: str
    after: str
    fix: SourceFix
    fresh: Fresh


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fixed]:
    """Every style fixed in source, and all of them checked in one new process."""
    folder = tmp_path_factory.mktemp("styles")
    plans: dict[str, tuple[str, SourceFix]] = {}
    for i, (name, text) in enumerate(STYLES.items()):
        path = folder / f"style_{i}.py"
        path.write_text(text, encoding="utf-8")
        target = load(str(path))
        result = dpcheck.fix(target.model, target.loss_fn, target.batch, unsafe=True)
        assert not result.before.ok and result.report.ok, name
        plans[name] = f"{path}:{target.symbol}", plan(target, result)
        assert path.read_text(encoding="utf-8") == text, "planning writes nothing"
    for _, fix in plans.values():
        for path, (_, new) in fix.contents.items():
            path.write_bytes(new)
    answers = load_afresh([text for text, _ in plans.values()])
    paths = [Path(text.rpartition(":")[0]).read_text(encoding="utf-8") for text, _ in plans.values()]
    return {
        name: Fixed(STYLES[name], after, plans[name][1], fresh)
        for name, after, fresh in zip(STYLES, paths, answers, strict=True)
    }


@pytest.mark.parametrize("name", STYLES)
def test_the_written_file_is_clean_in_a_new_process(name: str, fixed: dict[str, Fixed]) -> None:
    style = fixed[name]
    assert style.fresh.ok, (style.fresh, style.after)
    assert style.fix.mended and not style.fix.refused
    there, gone = EXPECTED[name]
    assert there in style.after
    new = [line[1:] for line in difflib.ndiff(style.before.splitlines(), style.after.splitlines()) if line[0] == "+"]
    assert not any(gone in line for line in new)
    assert "dpcheck" in style.after or not style.fix.whole


@pytest.mark.parametrize("name", STYLES)
def test_everything_else_of_the_file_stays(name: str, fixed: dict[str, Fixed]) -> None:
    """Every comment is still there, and nearly every line."""
    style = fixed[name]
    comments = [line.partition("#")[2] for line in style.before.splitlines() if "#" in line]
    assert all(comment in style.after for comment in comments)
    old = style.before.splitlines()
    kept = [line[2:] for line in difflib.ndiff(old, style.after.splitlines()) if line.startswith("  ")]
    assert len(old) - len(kept) <= EXPECTED_CHANGES.get(name, len(style.fix.mended))


def test_type_tests_that_are_no_longer_true_are_said(fixed: dict[str, Fixed]) -> None:
    (note,) = fixed["norm_layer is None"].fix.notes
    assert ":13: " in note and "isinstance" in note
    assert not fixed["default argument"].fix.notes
