"""What is installed is complete, light to import, and pinned."""

from __future__ import annotations

import importlib.resources
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "mlflow", "ray", "optuna"}
LAYERS = ["core", "graph", "calibration", "variants", "assembly", "evaluation", "search"]
OUTSIDE = ["spec", "storage", "targets", "tracking", "export", "execution", "cli", "testing"]

# Prints to stderr, as `--help` prints to stdout.
REPORT_MODULES = "import sys; print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
ASK_FOR_HELP = """
import sys
from autoq.cli.main import main
sys.argv = ["autoq", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def modules_loaded_by(code: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT_MODULES}"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.splitlines()[-1].split())


def sources(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def direct_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in [*project["dependencies"], *extras]]


def pinned_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel; it is built from a copy, because a build leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("autoq", "search_spaces"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = copy.glob("autoq-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_source_file_is_in_the_wheel(wheel_files: set[str]) -> None:
    expected = {f"autoq/{name}" for name in sources(ROOT / "autoq")}
    assert "autoq/py.typed" in expected
    assert expected - wheel_files == set()


def test_every_search_space_is_in_the_wheel(wheel_files: set[str]) -> None:
    expected = {f"autoq/search_spaces/{path.name}" for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert "autoq/search_spaces/cnn.yaml" in expected
    assert expected - wheel_files == set()


def test_the_wheel_brings_the_package_the_command_and_the_licence_only(wheel_files: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel_files} == {"autoq"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel_files)
    assert any(name.endswith("entry_points.txt") for name in wheel_files)


def test_search_spaces_can_be_read_as_package_data() -> None:
    assert importlib.resources.files("autoq.search_spaces").joinpath("cnn.yaml").is_file()


@pytest.mark.parametrize("name", LAYERS + OUTSIDE)
def test_every_package_of_the_design_exists(name: str) -> None:
    spec = importlib.util.find_spec(f"autoq.{name}")
    assert spec is not None
    assert spec.submodule_search_locations


def test_importing_autoq_loads_nothing_heavy() -> None:
    assert modules_loaded_by("import autoq") & HEAVY == set()


def test_the_process_of_the_trials_waits_for_nothing_that_trials_do_not_need() -> None:
    loaded = modules_loaded_by("import autoq.workbench_factory, autoq.targets.registry")
    assert "onnxruntime" in loaded
    assert loaded & (HEAVY | {"pydantic", "sqlalchemy", "scipy"}) == set()


def test_asking_for_help_loads_nothing_heavy() -> None:
    assert modules_loaded_by(ASK_FOR_HELP) & HEAVY == set()


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    assert pinned_versions()[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_are_plain_versions_that_every_index_has() -> None:
    assert [version for version in pinned_versions().values() if "+" in version] == []
