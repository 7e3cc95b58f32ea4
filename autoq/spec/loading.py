"""Load a spec: from YAML, or from the normalised JSON that a store keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoq.core.digests import digest_json
from autoq.spec.problems import validate
from autoq.spec.reading import read_yaml
from autoq.spec.schema import SearchSpec
from autoq.spec.spaces import load_space

DEFAULT_SPACE = "cnn"
_OF_FILES = {"path", "checkpoint", "npz", "torch", "python"}  # keys whose values name files


def load_spec(path: Path, overrides: Mapping[str, object] | None = None) -> SearchSpec:
    """Load a spec, with absolute paths and its search space in it.

    Files that the spec names are not opened, but for the search space.

    Args:
        path: YAML file; relative paths in it refer to its folder.
        overrides: Values from the command line by the path of their key, such as `search.trials`;
            None sets a key to null.

    Raises:
        SpecError: The file cannot be read, or something in it does not fit; one line for each problem.
    """
    content, overrides = read_yaml(path), overrides or {}
    for key, value in overrides.items():
        _override(content, key, value)
    base = path.parent.resolve()
    if content.get("space") is None:
        content["space"] = DEFAULT_SPACE
    if isinstance(content["space"], str):
        content["space"] = load_space(content["space"], base, where=f"{path}: space")
    return validate(SearchSpec, content, str(path), base=base, overridden=overrides.keys())


def spec_from_json(data: Mapping[str, Any]) -> SearchSpec:
    """Rebuild a spec from `SearchSpec.to_json`.

    Raises:
        SpecError: It is not what this version of autoq writes.
    """
    return validate(SearchSpec, data, "stored spec")


def spec_digest(spec: SearchSpec) -> str:
    """Hash everything that decides what is searched and how it is measured.

    The name, and what only decides how long the search may take, are left out: a search may be
    resumed with more trials. So are folders: model and data may have moved, and whether they are still
    the same is asked of their content.
    """
    content = _without_folders(spec.to_json())
    del content["name"], content["space"]["description"]
    rewrites = content["space"]["rewrites"]
    if not rewrites["widths"]["latency"] and not rewrites["widths"]["given"]:
        del rewrites["widths"]
    content["search"] = {key: content["search"][key] for key in ("strategy", "seed")}
    return digest_json(content)


def _without_folders(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: Path(part).name if key in _OF_FILES and isinstance(part, str) else _without_folders(part)
        for key, part in value.items()
    }


def _override(content: dict[Any, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            return  # the check of the whole spec says what is wrong with this section
    content[last] = value
