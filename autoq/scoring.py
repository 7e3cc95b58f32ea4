"""What units of channel groups are ordered by, as a spec says it; for Fisher scores, by which gradients."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoq.assembly.assemble import layer_weights
from autoq.core.choices import Criterion
from autoq.core.data import Split
from autoq.core.errors import ModelError
from autoq.core.python_objects import source_digest
from autoq.graph.float_model import FloatModel
from autoq.graph.torch_export import build_module
from autoq.graph.torch_gradients import DifferentiableModule, OutputLoss, torch_left_as_found
from autoq.pruning.fisher import MAX_EXAMPLES, MaskGradients, collect_mask_gradients
from autoq.spec.metrics import load_metric
from autoq.spec.schema import SearchSpec, TorchModelSpec


@dataclass(frozen=True)
class Scoring:
    """A criterion, and the module and the loss whose gradients it needs, if it needs any."""

    criterion: Criterion = Criterion.OBS
    module: TorchModelSpec | None = None
    loss: OutputLoss | None = None
    loss_name: str = ""

    @staticmethod
    def of(spec: SearchSpec, model: FloatModel) -> Scoring:
        """Read what a spec says of a model."""
        criterion = spec.space.rewrites.widths.criterion
        if criterion is not Criterion.FISHER or not isinstance(spec.model, TorchModelSpec):
            return Scoring(criterion)
        names = [output.name for output in model.summary.outputs]
        judged = model.output(spec.model.output).name
        # As divergence from the float model is measured.
        is_class_scores = load_metric(spec.metric).needs_labels
        loss = OutputLoss(names.index(judged), len(names), is_class_scores)
        kind = "cross entropy" if is_class_scores else "projection"
        return Scoring(criterion, spec.model, loss, f"{kind} of {judged}")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides orders, JSON-able; nothing where it is as usual."""
        if self.criterion is Criterion.OBS:
            return {}
        # Of two modules that are exported alike one may have no gradients.
        factory = {} if self.module is None else {"factory": source_digest(self.module.torch)}
        return {"criterion": str(self.criterion), "loss": self.loss_name, **factory}

    def gradients(
        self, model: FloatModel, readers: Collection[str], calibration: Split
    ) -> MaskGradients | None:
        """Run the module on calibration examples, forwards and backwards; None where no gradient is needed.

        Args:
            model: What was exported from the module.
            readers: Layers whose columns are asked for.
            calibration: Its first examples are taken.

        Raises:
            ModelError: The factory or the checkpoint fails, or the module cannot be differentiated.
        """
        if self.module is None or self.loss is None:
            return None
        checkpoint = None if self.module.checkpoint is None else Path(self.module.checkpoint)
        feeds = calibration.take(MAX_EXAMPLES).feeds(1)
        weights = layer_weights(model)
        with torch_left_as_found():
            built = build_module(self.module.torch, Path.cwd(), checkpoint)
            module = DifferentiableModule(built, tuple(self.module.example))
            try:
                return collect_mask_gradients(
                    module, model.summary.layers, weights, readers, feeds, self.loss
                )
            except ModelError as error:
                raise ModelError(
                    f"space.rewrites.widths.criterion: fisher: {error}",
                    hint="the other criteria need no gradients",
                ) from error
