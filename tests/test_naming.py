"""The text of a target: literals come back as they were written, and nothing in it is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpcheck.errors import DpcheckError
from dpcheck.naming import called, named

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(LITERALS, max_size=3), st.dictionaries(st.sampled_from(["width", "deep"]), LITERALS))
def test_literal_arguments_come_back(args: list[object], kwargs: dict[str, object]) -> None:
    text = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
    assert called(f"make({text})", "") == ("make", True, tuple(args), kwargs)
    found = named(f"some.package:make({text})")
    assert (found.kind, found.place, found.args, found.kwargs) == ("module", "some.package", tuple(args), kwargs)


@pytest.mark.parametrize("text", ["f(print(1))", "f(x)", "a.b(1)", "f(*[1])", "f(**{'a': 1})", "f(1", "1", "", "f()()"])
def test_what_is_no_literal_call_is_refused(text: str) -> None:
    with pytest.raises(DpcheckError, match="no symbol and no call with literal arguments") as caught:
        called(text, "m.py:" + text)
    assert caught.value.next


def test_kinds_of_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").touch()
    assert named("m.py").kind == "file" and named("m.py").symbol is None
    assert (named("m.py:net").symbol, named("m.py:net").call) == ("net", False)
    assert named("m.py:make({'a': 1})").args == ({"a": 1},)
    assert (named("json.tool").kind, named("json.tool:main").symbol) == ("module", "main")
    hf = named("hf:some/dir?num_hidden_layers=2&hidden_act=gelu&x=0.5")
    assert (hf.kind, hf.place) == ("hf", "some/dir")
    assert hf.kwargs == {"num_hidden_layers": 2, "hidden_act": "gelu", "x": 0.5}
    assert named("timm:resnet18").place == "resnet18"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timm:", "names no model"),
        ("hf:d?a", "not KEY=VALUE"),
        ("x.py:f", "no such file"),
        ("nowhere", "no such file"),
        ("verfy", "did you mean `dpcheck verify`?"),
    ],
)
def test_what_names_nothing_is_refused(text: str, says: str) -> None:
    with pytest.raises(DpcheckError, match=says):
        named(text)
