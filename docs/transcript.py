"""Makes the transcript of the README: docs/transcript.svg, and the text between its two marks.

    python docs/transcript.py

runs the commands in a terminal of its own, 110 columns wide, and takes what they print there.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 110
CHECK = ("examples/digits_cnn.py",)
TRAIN = ("examples/digits_cnn.py", "--fix", "--unsafe-fixes", "--train")
# What is drawn while the cursor is hidden is wiped away again.
_SPINNER = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h(\r?\x1b\[1A\x1b\[2K|\r)*", re.DOTALL)
BEGIN, END = "<!-- transcript: python docs/transcript.py -->\n", "<!-- end of transcript -->\n"


def printed(arguments: tuple[str, ...]) -> str:
    """What ``dpcheck ARGUMENTS`` prints on a terminal's standard output, with its colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "dpcheck", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=subprocess.DEVNULL):
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                part = b""
            if not part:
                break
            found += part
    os.close(ours)
    return _SPINNER.sub("", found.decode()).replace("\r\n", "\n")


def plain(text: str) -> str:
    """Without colours, and without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in Text.from_ansi(text).plain.splitlines()).strip() + "\n"


def main() -> None:
    """Write both."""
    shown = {arguments: printed(arguments) for arguments in (CHECK, TRAIN)}
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for arguments, text in shown.items():
        console.print(Text.assemble(("$ ", "green"), ("dpcheck " + " ".join(arguments), "bold")))
        console.print(Text.from_ansi(text.strip() + "\n"))
    console.save_svg(str(ROOT / "docs" / "transcript.svg"), title="dpcheck", unique_id="transcript")
    block = "".join(
        f"    {line}".rstrip() + "\n" for line in ["$ dpcheck " + CHECK[0], *plain(shown[CHECK]).splitlines()]
    )
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{block}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
