"""The store of variants: built once, kept on disk, shared by all searches."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from autoq.core.digests import checksum
from autoq.core.tensor_files import save_tensors
from autoq.variants.blas import one_blas_thread
from autoq.variants.build import LayerBuilder
from autoq.variants.shelf import Shelf
from autoq.variants.variant import Variant, WeightChoice

_log = logging.getLogger("autoq")

VARIANT_MEMORY_BYTES = 1 << 30  # variants kept in memory, least recently used go first
_DISK_BYTES = 10 << 30
_BUILDING_BYTES = 3 << 30  # what building may take, all threads together
_COPIES_OF_MOMENTS = 8  # that one layer's building holds at its peak


class VariantStore:
    """Variants of one model's layers: in memory, on disk, or built when they are asked for.

    Several processes may share the folder: at worst two build the same variant, and write the same
    bytes. A disk that is full costs time, not the search. Not safe to use from several threads.
    """

    def __init__(
        self,
        folder: Path,
        builders: Mapping[str, LayerBuilder],
        *,
        limit_bytes: int = _DISK_BYTES,
        memory_bytes: int = VARIANT_MEMORY_BYTES,
    ) -> None:
        self._shelf = Shelf(folder, ".safetensors", limit_bytes=limit_bytes)
        self._builders = builders
        self._memory: dict[str, Variant] = {}
        self._memory_bytes = memory_bytes
        self._used_bytes = 0
        self._disk_refuses = False
        self._refusal_lock = threading.Lock()

    def get(self, layer: str, choice: WeightChoice) -> Variant:
        """Return a variant from memory, from disk, or built now."""
        return self.get_all({layer: choice})[layer]

    def get_all(self, choices: Mapping[str, WeightChoice]) -> dict[str, Variant]:
        """Return one variant a layer; what is not in memory is read or built in parallel."""
        keys = {name: self._key(name, choice) for name, choice in choices.items()}
        missing = [(name, choices[name]) for name, key in keys.items() if key not in self._memory]
        with self._shelf.using(keys.values()):
            fresh = dict(zip((name for name, _ in missing), self._in_parallel(missing), strict=True))
        found = {name: self._remember(key, fresh.get(name)) for name, key in keys.items()}
        self._forget_oldest()
        return found

    def missing(self, wanted: Iterable[tuple[str, WeightChoice]]) -> list[tuple[str, WeightChoice]]:
        """Return those that are not on disk."""
        return [(layer, choice) for layer, choice in wanted if not self._shelf.has(self._key(layer, choice))]

    def build_all(
        self,
        wanted: Iterable[tuple[str, WeightChoice]],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Make sure that variants are on disk, as far as the disk takes them; return how many were not."""
        missing: dict[str, list[WeightChoice]] = {}
        for layer, choice in self.missing(wanted):
            missing.setdefault(layer, []).append(choice)
        n_missing, n_done = sum(map(len, missing.values())), 0
        # What takes longest first, so that no core is left alone with it at the end.
        order = sorted(missing, key=lambda name: -self._builders[name].layer.n_params)
        if not order:
            return 0
        # A layer a core: threads within a product only get into each other's way,
        # and sum in an order of their own.
        with one_blas_thread(), ThreadPoolExecutor(self._n_workers(order)) as pool:
            for built in pool.map(lambda name: self._prepare(name, missing[name]), order):
                n_done += built
                on_progress(n_done, n_missing)
        return n_missing

    def _prepare(self, layer: str, choices: list[WeightChoice]) -> int:
        """Build and save the variants of one layer. Runs in threads."""
        if not self._disk_refuses:  # what cannot be kept is better built when it is needed
            for choice, variant in zip(choices, self._builders[layer].build(choices), strict=True):
                self._save(self._key(layer, choice), variant)
        return len(choices)

    def _in_parallel(self, wanted: list[tuple[str, WeightChoice]]) -> list[Variant]:
        if all(self._shelf.has(self._key(*item)) for item in wanted):
            return [self._fetch(item) for item in wanted] if len(wanted) < 2 else self._mapped(wanted)
        with one_blas_thread():
            return self._mapped(wanted)

    def _mapped(self, wanted: list[tuple[str, WeightChoice]]) -> list[Variant]:
        with ThreadPoolExecutor(self._n_workers(layer for layer, _ in wanted)) as pool:
            return list(pool.map(self._fetch, wanted))

    def _n_workers(self, layers: Iterable[str]) -> int:
        """Threads that build side by side: as many as there are cores, and memory for the widest layer."""
        widest = max(self._builders[layer].n_columns for layer in layers)
        affordable = _BUILDING_BYTES // (_COPIES_OF_MOMENTS * 4 * widest**2)
        return max(1, min(os.cpu_count() or 1, affordable))

    def _fetch(self, wanted: tuple[str, WeightChoice]) -> Variant:
        """Read a variant from disk, or build and save it. Runs in threads."""
        layer, choice = wanted
        key = self._key(layer, choice)
        variant = self._load(key)
        if variant is None:
            [variant] = self._builders[layer].build([choice])
            self._save(key, variant)
        return variant

    def _key(self, layer: str, choice: WeightChoice) -> str:
        return self._builders[layer].key(choice)

    def _load(self, key: str) -> Variant | None:
        """Read a variant; a missing or broken file is a miss."""
        try:
            tensors = load_file(self._shelf.path(key))
            expected = tensors.pop("checksum")
            return Variant.from_tensors(tensors) if checksum(tensors) == int(expected[0]) else None
        except (OSError, SafetensorError, KeyError, ValueError, IndexError):
            return None

    def _save(self, key: str, variant: Variant) -> None:
        tensors = {name: np.asarray(array, order="C") for name, array in variant.tensors().items()}
        tensors["checksum"] = np.array([checksum(tensors)], np.uint32)
        try:
            self._shelf.save(key, lambda path: save_tensors(tensors, path))
        except OSError as error:
            with self._refusal_lock:  # several threads save at once, and one line is enough
                if not self._disk_refuses:
                    _log.warning("variants are not kept on disk and will be built again: %s", error)
                self._disk_refuses = True

    def _remember(self, key: str, fresh: Variant | None) -> Variant:
        """Put a variant at the recent end of the memory."""
        known = self._memory.pop(key, None)
        variant = known or fresh
        assert variant is not None
        if known is None:
            self._used_bytes += variant.nbytes
        self._memory[key] = variant
        return variant

    def _forget_oldest(self) -> None:
        while self._used_bytes > self._memory_bytes and len(self._memory) > 1:
            oldest = next(iter(self._memory))
            self._used_bytes -= self._memory.pop(oldest).nbytes
