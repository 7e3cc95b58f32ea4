from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest
from typer.testing import Result

Autoq = Callable[..., Result]

# Not pydantic: typer itself imports it for the help of a command.
HEAVY = (
    "torch",
    "mlflow",
    "ray",
    "optuna",
    "onnxruntime",
    "onnx",
    "sqlalchemy",
    "matplotlib",
    "autoq.spec.schema",
)


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "import autoq.cli.main as cli\n"
        f"sys.argv = ['autoq', *{arguments}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


def test_the_version_is_the_packages(autoq: Autoq) -> None:
    assert autoq("--version").stdout == f"autoq {version('autoq')}\n"


def test_python_m_autoq_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "autoq", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("autoq ")


@pytest.mark.parametrize(
    ("flag", "unit"),
    [
        ("--latency-budget", "0.8ms, or a share of the float model's, 50%"),
        ("--max-drop", "1% or 0.01"),
        ("--max-size", "3MB"),
        ("--max-bundle", "1MB"),
        ("--trials", "Candidates"),
        ("--time-budget", "90s, 10m or 1h"),
        ("--patience", "trials"),
        ("--strategy", "guided, tpe, nsga2, gp or random"),
        ("--seed", "whole number"),
        ("--home", "autoq-home"),
        ("--resume", "interrupted"),
        ("--dry-run", "cost"),
        ("--json", "stdout"),
    ],
)
def test_the_help_of_search_tells_every_flag_with_unit_and_default(
    autoq: Autoq, flag: str, unit: str
) -> None:
    text = " ".join(autoq("search", "--help").stdout.split())
    described = re.split(r" (?=--[a-z])", text.partition("Options:")[2])
    mine = next(part for part in described if part.strip().startswith(flag))
    assert unit in mine
    assert "default: " in mine.lower()


COMMANDS = ["search", "front", "show", "report", "compare", "list", "delete", "export", "apply", "unbundle"]
COMMANDS += ["inspect", "ui", "sync", "doctor", "cache"]


def test_every_command_is_listed_and_no_other(autoq: Autoq) -> None:
    listed = autoq("--help").stdout.partition("Commands:")[2].strip().splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("apply", "unbundle")])
def test_every_command_over_a_home_takes_it_from_flag_or_environment(autoq: Autoq, command: str) -> None:
    text = " ".join(autoq(command, "--help").stdout.split())
    assert "--home DIR" in text
    assert "AUTOQ_HOME" in text


def test_an_unknown_flag_is_the_users_error(autoq: Autoq) -> None:
    assert autoq("list", "--fast").exit_code == 2
