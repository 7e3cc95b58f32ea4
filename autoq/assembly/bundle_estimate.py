"""Estimate the storage bundle of an assembled model from the model's own bytes."""

from __future__ import annotations

from autoq.core.packing import fingerprint, packed_bytes
from autoq.core.transforms import Transform
from autoq.graph.onnx_spans import Span, find_spans, skeleton_of

# Of the written file beside its records: the header, the index, and what the index says of a tensor.
_FIXED_BYTES = 200
_TENSOR_BYTES = 29
_MOST_KNOWN = 1 << 16


class BundleEstimator:
    """Estimates bundles; tensors that come again, as in most trials, are not packed again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], int] = {}

    def __call__(self, content: bytes) -> int:
        """Return about how many bytes `autoq export --bundle` would write for a model.

        Raises:
            ModelError: It is not an ONNX file, or keeps weights in other files.
        """
        view = memoryview(content)
        spans = find_spans(view)
        skeleton = packed_bytes(skeleton_of(view, spans), (Transform.PLAIN,))
        tensors = sum(self._tensor_bytes(span, view) for span in spans)
        return skeleton + tensors + _FIXED_BYTES + _TENSOR_BYTES * len(spans)

    def _tensor_bytes(self, span: Span, content: memoryview) -> int:
        tensor = span.of(content)
        # A collision of checksums would make an estimate wrong and nothing else.
        key = (span.data_type, span.size, fingerprint(tensor))
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = packed_bytes(tensor, span.transforms)
        return self._known[key]
