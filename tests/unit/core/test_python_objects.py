import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoq.core.errors import SpecError
from autoq.core.python_objects import load_object


@pytest.fixture(autouse=True)
def _imports_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("autoq_user_") or name == "neighbour":
            del sys.modules[name]


def write(folder: Path, content: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_a_function_of_a_file_is_loaded_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 7\n", "neighbour.py")
    path = write(tmp_path, "from neighbour import VALUE\ndef f():\n    return VALUE\n")
    assert load_object(f"{path}:f")() == 7
    assert load_object("mine.py:f", tmp_path)() == 7


def test_a_dotted_name_of_a_module_is_loaded() -> None:
    assert load_object("collections.abc:Mapping.get") is __import__("collections").abc.Mapping.get


def test_a_file_is_run_once_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path, "def f():\n    return 1\n")
    first = load_object(f"{path}:f")
    assert load_object(f"{path}:f") is first
    write(tmp_path, "def f():\n    return 22\n")
    assert load_object(f"{path}:f")() == 22


def test_classes_of_a_file_find_their_module(tmp_path: Path) -> None:
    path = write(tmp_path, "class A:\n    pass\n")
    cls = load_object(f"{path}:A")
    assert sys.modules[cls.__module__].A is cls


def _call_in_child(reference: str) -> int:
    result: int = load_object(reference)()
    return result


def test_a_reference_is_enough_for_another_process(tmp_path: Path) -> None:
    path = write(tmp_path, "def f():\n    return 5\n")
    code = f"from autoq.core.python_objects import load_object; print(load_object({f'{path}:f'!r})())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "5\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("raise ValueError('no\\n luck')\n", "importing it raised ValueError: no luck"),
        ("def f(:\n", "importing it raised SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import sys\nsys.exit('bye')\n", "importing it raised SystemExit: bye"),
    ],
)
def test_a_file_that_raises_is_one_line(tmp_path: Path, content: str, expected: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(SpecError) as caught:
        load_object(f"{path}:f")
    assert str(caught.value) == f"{path}: {expected}"


def test_a_missing_file_module_or_name_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "x = 1\n")
    with pytest.raises(SpecError, match=r"no\.py: no such file$"):
        load_object("no.py:f", tmp_path)
    with pytest.raises(SpecError, match=r"mine\.py has no 'f'$"):
        load_object(f"{path}:f")
    with pytest.raises(
        SpecError, match=r"importing no_such_thing raised ModuleNotFoundError: .*file\.py:function"
    ):
        load_object("no_such_thing:f")
    with pytest.raises(SpecError, match=r"'json': expected 'file\.py:function' or"):
        load_object("json")
