"""BentoML, one worker. `bentoml_server.py CASE PORT` becomes its server of the class below.

Its adaptive batching decides by itself how long to wait; the longest latency is its default.
"""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np

if __name__ == "__main__":
    case, port = sys.argv[1:]
    name = {"echo": "Echo", "mlp": "Perceptron", "mlp-batched": "Batched"}[case]
    command = [sys.executable, "-m", "bentoml", "serve", f"bentoml_server:{name}"]
    command += ["--working-dir", str(Path(__file__).resolve().parent)]
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", port])

SERVICE = bentoml.service(
    workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}
)


class Model:
    def __init__(self) -> None:
        import perceptron
        import torch

        self.torch = torch
        self.net = perceptron.build()

    def infer(self, inputs):
        with self.torch.inference_mode():
            return self.net(self.torch.from_numpy(inputs)).numpy()


@SERVICE
class Echo:
    @bentoml.api(route="/predict")
    def echo(self, text: str) -> dict[str, str]:
        return {"text": text}


@SERVICE
class Perceptron(Model):
    @bentoml.api(route="/predict")
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.infer(inputs.astype(np.float32))


@SERVICE
class Batched(Model):
    @bentoml.api(route="/predict", batchable=True, max_batch_size=16)
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.infer(inputs.astype(np.float32))
