"""The transcript of the README is what the command prints today, apart from numbers."""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def check(transcript: ModuleType) -> str:
    """What the check prints today."""
    return str(transcript.plain(transcript.printed(transcript.CHECK)))


@pytest.fixture(scope="module")
def transcript() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dpcheck_docs_transcript", ROOT / "docs" / "transcript.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def masked(text: str) -> str:
    """Without what a number changes: its digits, and the blanks and lines that align and wrap it."""
    words = re.sub(r"[─━│┃┏┓┗┛┡┩├┤└┘╇┳┴]+", " ", re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "N", text))
    return "".join(words.split())


def drawn(svg: str) -> str:
    """The text of rich's picture: one element for each stretch of a line."""
    lines: dict[str, str] = {}
    for line, text in re.findall(
        r'<text class="transcript-r\d+"[^>]*clip-path="url\(#transcript-line-(\d+)\)"[^>]*>([^<]*)<', svg
    ):
        lines[line] = lines.get(line, "") + html.unescape(text).replace("\xa0", " ")
    return "\n".join(lines[line] for line in sorted(lines, key=int))


def test_the_text_is_what_the_check_prints(transcript: ModuleType, check: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(transcript.BEGIN)[2].partition(transcript.END)[0]
    first, _, rest = text.strip().partition("\n")
    assert first == "$ dpcheck " + " ".join(transcript.CHECK)
    assert masked(rest) == masked(check)


def test_the_picture_is_what_the_commands_print(transcript: ModuleType, check: str) -> None:
    # Fewer epochs change numbers only.
    train = transcript.plain(transcript.printed((*transcript.TRAIN, "--epochs", "1")))
    shown = [f"$ dpcheck {' '.join(transcript.CHECK)}", check, f"$ dpcheck {' '.join(transcript.TRAIN)}", train]
    assert masked(drawn((ROOT / "docs" / "transcript.svg").read_text(encoding="utf-8"))) == masked("\n".join(shown))
