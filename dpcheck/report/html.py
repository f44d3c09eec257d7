"""One self-contained page: no script, no network, light and dark."""

from __future__ import annotations

import linecache
import re
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from dpcheck import __version__
from dpcheck.diagnostic import Diagnostic, Location, ParameterFact, Report
from dpcheck.report import guess_of, tally
from dpcheck.report.full import METHOD, verdict_of
from dpcheck.report.places import place_of, short
from dpcheck.report.tree import Branch, tree_of

_CONTEXT = 2
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_STYLE = """\
:root { color-scheme: light dark; --text: #1f2328; --page: #ffffff; --box: #f6f8fa; --line: #d1d9e0; --dim: #59636e;
  --good: #1a7f37; --bad: #cf222e; --open: #9a6700; --mark: #ffebe9; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --page: #0d1117; --box: #151b23; --line: #3d444d;
  --dim: #9198a1; --good: #3fb950; --bad: #f85149; --open: #d29922; --mark: #491f22; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; } .dim { color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
.verdict { border-left: .4rem solid currentColor; padding: .6rem 1rem; background: var(--box); }
.verdict b { font-size: 1.2rem; } .verdict span { color: var(--text); }
.finding { border: 1px solid var(--line); border-radius: .4rem; margin: 1rem 0; padding: .2rem 1rem .8rem; }
pre { background: var(--box); overflow-x: auto; padding: .5rem; margin: .5rem 0; }
pre.words { white-space: pre-wrap; }
pre .hit { background: var(--mark); display: inline-block; min-width: 100%; } mark { all: unset;
  text-decoration: underline wavy var(--bad); } ul.tree, .tree ul { list-style: none; padding-left: 1.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; } th, td { border: 1px solid var(--line);
  padding: .25rem .6rem; text-align: left; vertical-align: top; }
td span { white-space: nowrap; } th { background: var(--box); }
svg { max-width: 100%; height: auto; }"""
_CLASS = {"independent": "good", "mixing": "bad", "unproven": "open"}
_STATUS = {"covered": "good", "fallback": "open", "mixed": "bad", "no-gradient": "bad", "frozen": "dim"}


def render(document: Mapping[str, Any]) -> str:
    """The page of a run: ``check`` and, as far as they were reached, ``fix``, ``verify``, ``train`` and ``budget``."""
    report: Report = document["check"]
    subject = f"{short(document['target'])}:{document['symbol']}"
    before = " before the fixes" if document.get("fix") is not None else ""
    parts = [
        f"<h1>dpcheck: <code>{_text(subject)}</code></h1>",
        _verdict(report),
        _findings(report, short(document["target"])),
        _fix(document.get("fix")),
        f'<h2>Modules{before}</h2><ul class="tree">{_branch(tree_of(report))}</ul>',
        _parameters(report.parameters, before),
        _plan(report),
        _verify(document.get("verify")),
        _train(document.get("train"), document.get("budget")),
        "".join(f'<p class="dim">{_text(note)}</p>' for note in report.notes),
        f'<p class="dim">dpcheck {_text(__version__)}</p>',
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>dpcheck: {_text(subject)}: {report.verdict}</title>\n<style>\n{_STYLE}\n</style></head><body>",
            *filter(None, parts),
            "</body></html>",
        ]
    )


def _text(value: Any) -> str:
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def _verdict(report: Report) -> str:
    guess = guess_of(report)
    proven = report.ok and guess is None
    colour = _CLASS[report.verdict] if proven or report.verdict != "independent" else "open"
    told = [f"{_sentence(verdict_of(report))} {_sentence(tally(report))} {_sentence(METHOD[report.method])}"]
    told += [guess] if guess else []
    lines = "".join(f"<br><span>{_text(line)}</span>" for line in told)
    return f'<p class="verdict {colour}"><b>{report.verdict}</b>{lines}</p>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _findings(report: Report, file: str) -> str:
    if not report.diagnostics:
        return ""
    return "<h2>Findings</h2>" + "".join(_finding(d, file) for d in report.diagnostics)


def _finding(d: Diagnostic, file: str) -> str:
    lines = [f'<h3><span class="bad">{_text(d.code)}</span> {_text(d.name)}</h3><p>{_text(d.message)}</p>']
    lines += [f'<p class="open"><b>Ignored</b>: {_text(d.ignored)}</p>'] if d.ignored else []
    if d.location is not None:
        lines.append(_source(d.location))
    elif d.module is not None:
        lines.append(f"<p>in module <code>{_text(d.module or '(the model)')}</code></p>")
    lines += [f'<p class="dim">in {_text(short(at.file))}:{at.line}</p>' for at in d.related]
    lines += [f"<p><b>Help</b>: {_text(d.help)}</p>"] if d.help else []
    if d.fix in ("safe", "unsafe"):
        command = f"dpcheck {shlex.quote(file)} --fix{' --unsafe-fixes' if d.fix == 'unsafe' else ''}"
        lines.append(f"<p><b>Fix</b>: <code>{_text(command)}</code></p>")
    return f'<div class="finding">{"".join(lines)}</div>'


def _source(at: Location) -> str:
    place, lines = place_of(at), linecache.getlines(at.file)
    where = f"<p><code>{_text(place.path)}:{place.line}</code></p>"
    if not 0 < at.line <= len(lines):
        return where
    first, last = max(1, place.line - _CONTEXT), min(len(lines), place.end_line + _CONTEXT)
    shown = []
    for number in range(first, last + 1):
        line = lines[number - 1].rstrip("\n")
        body = _text(line)
        if number == place.line == place.end_line and place.column and place.end_column:
            a, b = place.column - 1, place.end_column - 1
            body = f"{_text(line[:a])}<mark>{_text(line[a:b])}</mark>{_text(line[b:])}"
        text = f'<span class="dim">{number:>5}</span> {body}'
        shown.append(f'<span class="hit">{text}</span>' if place.line <= number <= place.end_line else text)
    return f"{where}<pre>{chr(10).join(shown)}</pre>"


def _branch(branch: Branch) -> str:
    name = _text(branch.name or "(the model)")
    kind = f' <span class="dim">{_text(branch.kind)}</span>' if branch.kind else ""
    marks = "".join(f' <b class="bad">{_text(code)}</b>' for code in branch.codes)
    label = (
        f'<span class="{_CLASS.get(branch.verdict, "dim")}">\N{BLACK CIRCLE}</span> <code>{name}</code>{kind}{marks}'
    )
    label += f'<span class="dim">: {_text(branch.verdict)}</span>'
    if not branch.children:
        return f"<li>{label}</li>"
    inside = "".join(map(_branch, branch.children))
    return f"<li><details open><summary>{label}</summary><ul>{inside}</ul></details></li>"


def _parameters(parameters: Iterable[ParameterFact], before: str) -> str:
    rows = [
        [
            f"<code>{_text(p.name)}</code>",
            _text("x".join(map(str, p.shape)) or "scalar"),
            _text(p.owner),
            f'<span class="{_STATUS[p.status]}">{p.status}</span>',
            _text(", ".join(dict.fromkeys(p.sites))),
            _text(", ".join(dict.fromkeys(f"{short(at.file)}:{at.line}" for at in p.uses or ()))),
            _text(", ".join(p.tied)),
        ]
        for p in parameters
    ]
    heads = ("parameter", "shape", "held by", "gradient", "summed over samples by", "read at", "also called")
    return f"<h2>Parameters{before}</h2>{_table(heads, rows)}"


def _plan(report: Report) -> str:
    sums: dict[str, list[str]] = {}
    for p in report.parameters:
        for site in dict.fromkeys(p.sites):
            sums.setdefault(site, []).append(p.name)
    if report.method == "none" or not sums:
        return ""
    rows = [[f"<code>{_text(op)}</code>", _text(", ".join(names))] for op, names in sums.items()]
    told = "The sums over samples that are taken apart; <code>dpcheck plan</code> says what each costs."
    return f"<h2>Plan</h2><p>{_text(METHOD[report.method])}. {told}</p>{_table(('sum', 'of'), rows)}"


def _fix(fixed: Mapping[str, Any] | None) -> str:
    if fixed is None:
        return ""
    rows = [
        [_text(c.code), f"<code>{_text(c.module or '(the model)')}</code>", _text(c.what), "yes" if c.applied else "no"]
        for c in fixed["changes"]
    ]
    table = _table(("rule", "module", "change", "made"), rows)
    return f"<h2>Fixes</h2>{table}<p>After them:</p>{_verdict(fixed['check'])}"


def _verify(proof: Any) -> str:
    if proof is None:
        return ""
    rows = [
        [f"<code>{_text(p.name)}</code>", _text(", ".join(p.sites)), f"{p.error_single:.1e}", "yes" if p.ok else "NO"]
        for p in proof.parameters
    ]
    heads = ("parameter", "sampler", "largest relative error", "right")
    return f"<h2>Per-sample gradients against each sample alone</h2>{_table(heads, rows)}"


def _train(outcome: Any, budget: Any) -> str:
    if outcome is None:
        return ""
    results = [["private", _numbers(outcome.private)]]
    results += [["without privacy", _numbers(outcome.baseline)]] if outcome.baseline is not None else []
    curve = ""
    if budget is not None:
        from dpcheck.report.budget import svg

        curve = f"<h2>Budget</h2><div>{svg(budget)}</div>"
    told = f'<pre class="words">{_text(outcome.statement)}</pre>'
    return f"<h2>Training</h2>{told}{_table(('run', 'result'), results)}{curve}"


def _numbers(values: Mapping[str, Any]) -> str:
    nothing = "nothing to say: the file defines neither evaluate(model) nor test_dataset()"
    return _text(", ".join(f"{name} {value:.4g}" for name, value in values.items()) or nothing)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """``rows`` hold markup."""
    top = "".join(f"<th>{_text(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'
