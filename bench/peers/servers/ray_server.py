"""Ray Serve, one replica, its cluster within this process's tree. `ray_server.py CASE PORT`.

RAY_TEMP says where its files go; the dashboard is off and the object store as small as Ray allows.
"""

import os
import signal
import sys
import threading

import ray
from ray import serve
from starlette.requests import Request

CASE, PORT = sys.argv[1], int(sys.argv[2])
OBJECT_STORE_BYTES = 80 << 20


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Echo:
    async def __call__(self, request: Request):
        return await request.json()


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Perceptron:
    def __init__(self) -> None:
        import perceptron

        self.infer = perceptron.infer
        self.net = perceptron.build()

    async def __call__(self, request: Request):
        event = await request.json()
        return {"outputs": self.infer(self.net, event["inputs"])}


if __name__ == "__main__":
    ended = threading.Event()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        _temp_dir=os.environ["RAY_TEMP"],
        _node_ip_address="127.0.0.1",
    )
    # After init, which sets a handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run({"echo": Echo, "mlp": Perceptron}[CASE].bind(), route_prefix="/predict")
    ended.wait()
    serve.shutdown()
    ray.shutdown()
