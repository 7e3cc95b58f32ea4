"""The content-addressed store of variants: built once, kept on disk, shared by all searches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from autoq.core.digests import digest_arrays
from autoq.core.layers import Layer
from autoq.variants.variant import Variant, WeightChoice, build_variant, variant_key

_MEMORY_BYTES = 1 << 30  # variants kept in memory, least recently used go first


class VariantStore:
    """Variants of one model's layers.

    Files are written atomically under their key, so several processes may share the folder: at worst
    two build the same variant, and write the same bytes.
    """

    def __init__(
        self,
        folder: Path,
        layers: Iterable[Layer],
        weights: Mapping[str, npt.NDArray[np.float32]],
    ) -> None:
        self._folder = folder
        self._layers = {layer.name: layer for layer in layers}
        self._weights = weights
        self._digests = {
            name: digest_arrays({f"axis{layer.channel_axis}": weights[name]})
            for name, layer in self._layers.items()
        }
        self._memory: dict[str, Variant] = {}
        self._used_bytes = 0

    def get(self, layer: str, choice: WeightChoice) -> Variant:
        """Return a variant from memory, from disk, or built now."""
        return self.get_all({layer: choice})[layer]

    def get_all(self, choices: Mapping[str, WeightChoice]) -> dict[str, Variant]:
        """Return one variant a layer; what is not in memory is read or built in parallel."""
        missing = [name for name in choices if self._key(name, choices[name]) not in self._memory]
        fresh = dict(zip(missing, self._in_parallel([(n, choices[n]) for n in missing]), strict=True))
        found = {name: self._remember(name, choices[name], fresh.get(name)) for name in choices}
        self._forget_oldest()
        return found

    def build_all(
        self,
        wanted: Iterable[tuple[str, WeightChoice]],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Make sure that variants are on disk; return how many had to be built."""
        missing = [(layer, c) for layer, c in wanted if not self._path(self._key(layer, c)).exists()]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(self._fetch, missing), start=1):
                on_progress(done, len(missing))
        return len(missing)

    def _in_parallel(self, wanted: list[tuple[str, WeightChoice]]) -> list[Variant]:
        if len(wanted) < 2:
            return [self._fetch(item) for item in wanted]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return list(pool.map(self._fetch, wanted))

    def _fetch(self, wanted: tuple[str, WeightChoice]) -> Variant:
        """Read a variant from disk, or build and save it. Runs in threads: touches no shared state."""
        layer, choice = wanted
        key = self._key(layer, choice)
        variant = self._load(key)
        if variant is None:
            variant = build_variant(self._layers[layer], self._weights[layer], choice)
            self._save(key, variant)
        return variant

    def _remember(self, layer: str, choice: WeightChoice, fresh: Variant | None) -> Variant:
        """Put a variant at the recent end of the memory."""
        key = self._key(layer, choice)
        known = self._memory.pop(key, None)
        variant = known or fresh
        assert variant is not None
        if known is None:
            self._used_bytes += variant.nbytes
        self._memory[key] = variant
        return variant

    def _forget_oldest(self) -> None:
        while self._used_bytes > _MEMORY_BYTES and len(self._memory) > 1:
            oldest = next(iter(self._memory))
            self._used_bytes -= self._memory.pop(oldest).nbytes

    def _key(self, layer: str, choice: WeightChoice) -> str:
        return variant_key(self._digests[layer], choice)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _load(self, key: str) -> Variant | None:
        """Read a variant; a missing or broken file is a miss."""
        try:
            return Variant.from_tensors(load_file(self._path(key)))
        except (OSError, SafetensorError, KeyError):
            return None

    def _save(self, key: str, variant: Variant) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{id(variant)}.tmp")
        save_file(
            {name: np.asarray(array, order="C") for name, array in variant.tensors().items()}, temporary
        )
        temporary.replace(path)
