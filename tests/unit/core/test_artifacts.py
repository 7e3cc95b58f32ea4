from __future__ import annotations

import mmap
from pathlib import Path

from autoq.core.artifacts import ModelArtifact


def write_files(folder: Path, **contents: bytes) -> ModelArtifact:
    """Write `model` and whatever external data are given beside it."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return ModelArtifact(
        path=folder / "model", external=tuple(folder / name for name in contents if name != "model")
    )


def test_a_model_in_memory_has_no_files_and_one_on_disk_no_bytes(tmp_path: Path) -> None:
    inline = ModelArtifact.from_bytes(b"abc")
    assert inline.files == ()
    assert inline.source == b"abc"
    on_disk = write_files(tmp_path, model=b"ab", data=b"cdef")
    assert on_disk.files == (tmp_path / "model", tmp_path / "data")
    assert on_disk.source == str(tmp_path / "model")
    assert (inline.size_bytes, on_disk.size_bytes) == (3, 6)


def test_one_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    assert write_files(tmp_path, model=b"abc").digest == ModelArtifact.from_bytes(b"abc").digest


def test_the_digest_knows_every_byte_but_not_the_folder_nor_the_order(tmp_path: Path) -> None:
    contents = {"model": b"abc", "x": b"123", "y": b"456"}
    artifact = write_files(tmp_path / "one", **contents)
    assert artifact.path is not None
    swapped = ModelArtifact(path=artifact.path, external=artifact.external[::-1])
    assert write_files(tmp_path / "two", **contents).digest == swapped.digest == artifact.digest
    for number, name in enumerate(contents):
        changed = write_files(tmp_path / f"changed{number}", **{**contents, name: b"???"})
        assert changed.digest != artifact.digest


def test_what_is_saved_under_another_name_is_the_same_artifact(tmp_path: Path) -> None:
    artifact = write_files(tmp_path / "one", model=b"abc", data=b"123")
    (tmp_path / "two").mkdir()
    path = tmp_path / "two" / "renamed.onnx"
    artifact.save(path)
    saved = artifact.at(path)
    assert saved.files == (path, tmp_path / "two" / "data")
    assert saved.digest == artifact.digest
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == ["data", "renamed.onnx"]


def test_what_was_in_memory_is_the_same_artifact_on_disk(tmp_path: Path) -> None:
    artifact = ModelArtifact.from_bytes(b"abc")
    artifact.save(tmp_path / "m.onnx")
    assert artifact.at(tmp_path / "m.onnx").digest == artifact.digest


def test_saving_replaces_data_that_somebody_has_mapped_without_touching_them(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "data"
    target.write_bytes(b"old data")
    with target.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        write_files(tmp_path / "one", model=b"abc", data=b"123").save(tmp_path / "out" / "m.onnx")
        assert mapped[:] == b"old data"
    assert target.read_bytes() == b"123"


def test_saving_in_its_own_folder_keeps_the_data(tmp_path: Path) -> None:
    artifact = write_files(tmp_path, model=b"abc", data=b"123")
    artifact.save(tmp_path / "copy")
    assert artifact.at(tmp_path / "copy").digest == artifact.digest
