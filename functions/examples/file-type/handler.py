"""The type of a file, told from its bytes alone, by Google's Magika."""

from typing import Any

import onnxruntime
from magika import Magika


class Identifier(Magika):
    """Magika on a single thread: instances are what scales, and each owns one core."""

    def _init_onnx_session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            self._model_path, options, providers=["CPUExecutionProvider"]
        )


def load(context: Any) -> None:
    # Only warms up: what onnxruntime sets up with its first session is shared by all instances.
    Identifier().identify_bytes(b"#!/bin/sh\necho warm up\n")


def attach(state: Any, context: Any) -> Identifier:
    # Sessions may own threads, which do not survive a fork: each instance opens its own.
    return Identifier()


def handle(event: Any, context: Any) -> Any:
    content = event.encode() if isinstance(event, str) else event
    if not isinstance(content, bytes) or not content:
        return context.response(
            {"error": "Send the file's bytes as application/octet-stream."}, status=400
        )
    result = context.state.identify_bytes(content)
    kind = result.output
    return {
        "label": str(kind.label),
        "mime_type": kind.mime_type,
        "group": kind.group,
        "description": kind.description,
        "score": round(result.score, 4),
    }
