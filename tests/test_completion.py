"""Completion: bash is asked what it would offer; the scripts of the others name every option."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dpcheck.cli import COMMANDS, ERROR, main
from dpcheck.completion import SHELLS, options_of


def offered(*words: str) -> set[str]:
    """What bash offers for the last of ``words``."""
    line = " ".join(f"'{word}'" for word in words)
    script = SHELLS["bash"](options_of(COMMANDS))
    asked = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _dpcheck; printf "%s\\n" "${{COMPREPLY[@]}}"'
    shell = shutil.which("bash")
    assert shell is not None
    done = subprocess.run([shell, "-u", "-c", asked], capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return set(done.stdout.split())


def test_bash_offers_commands_options_choices_and_files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").touch()
    assert offered("dpcheck", "ex") == {"explain"}
    assert offered("dpcheck", "mo") == {"model.py"}
    assert offered("dpcheck", "train", "model.py", "--cl") == {"--clipping"}
    assert offered("dpcheck", "model.py", "--unsafe") == {"--unsafe-fixes"}
    assert offered("dpcheck", "model.py", "--format", "h") == {"html"}
    assert offered("dpcheck", "train", "model.py", "--format", "") == {"full", "json", "html"}
    assert not offered("dpcheck", "plan", "model.py", "--clipping")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_of_every_command_is_in_the_script(shell, capsys) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for command, options in options_of(COMMANDS).items():
        assert command in text
        for option in options:
            assert option.names
            assert all((name[2:] if shell == "fish" else name) in text for name in option.names)


def test_an_unknown_shell_is_named(capsys) -> None:
    assert main(["completion", "csh"]) == ERROR
    assert "csh" in capsys.readouterr().err
