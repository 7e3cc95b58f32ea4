"""Where a home keeps what: stores, artifacts, caches, log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from autoq.core.errors import StoreError


@dataclass(frozen=True)
class Home:
    """A folder, `./autoq-home` unless told otherwise, and the databases that may stand in for its files."""

    root: Path
    storage_url: str  # SQLAlchemy URL
    tracking_uri: str | None  # MLflow's; None is a file in the home

    @staticmethod
    def open(root: Path) -> Home:
        """Create the folder and read the environment.

        Raises:
            StoreError: The folder cannot be created or written to.
        """
        root = root.absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{root}: cannot create the home: {error.strerror}") from error
        if not os.access(root, os.W_OK):
            raise StoreError(f"{root}: the home is not writable")
        url = os.environ.get("AUTOQ_STORAGE") or f"sqlite:///{root / 'autoq.db'}"
        return Home(root, url, os.environ.get("MLFLOW_TRACKING_URI") or None)

    @property
    def cache(self) -> Path:
        """Everything in here can be deleted and is built again."""
        return self.root / "cache"

    @property
    def log_file(self) -> Path:
        """Log of all commands."""
        return self.root / "autoq.log"

    def model(self, digest: str) -> Path:
        """A canonical float model."""
        return self.cache / "models" / f"{digest}.onnx"

    def canonical(self, file_digest: str) -> Path:
        """Which canonical float model a file of the user's gives."""
        return self.cache / "canonical" / f"{file_digest}.json"

    def derived(self, key: str) -> Path:
        """What rewrites made of a float model, and with which vectors."""
        return self.cache / "derived" / f"{key}.npz"

    def statistics(self, key: str) -> Path:
        """Statistics of one calibration pass."""
        return self.cache / "statistics" / f"{key}.npz"

    @property
    def variants(self) -> Path:
        """The variant store."""
        return self.cache / "variants"

    def snapshots(self, key: str) -> Path:
        """Channel groups of a float model at every width, refitted."""
        return self.cache / "snapshots" / key

    def widths(self, key: str) -> Path:
        """Which widths the shares of latency mean that a search space names."""
        return self.cache / "widths" / f"{key}.json"

    def guide(self, key: str) -> Path:
        """What the guided strategy measured of a model before its trials."""
        return self.cache / "guides" / f"{key}.json"

    @property
    def outputs(self) -> Path:
        """What float models gave on splits."""
        return self.cache / "outputs"

    def lock(self, search: str) -> Path:
        """Held by the process that runs a search."""
        return self.root / "locks" / f"{search}.lock"

    def artifacts(self, search: str) -> Path:
        """What a search leaves for people: plot, recipe."""
        return self.root / "artifacts" / search
