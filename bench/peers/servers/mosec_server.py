"""mosec, one worker process. `mosec_server.py CASE PORT WAIT_MS`.

The front is mosec's own (Rust), JSON is decoded in the worker, as its examples do. With batching
the worker gets up to 16 requests, the first of which waits WAIT_MS for others.
"""

import sys

from mosec import Server, Worker

LARGEST_BODY = 64 << 20


class Echo(Worker):
    def forward(self, data):
        return data


class Body(Worker):
    resp_mime_type = "application/octet-stream"

    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data

    def forward(self, data):
        return data


class Perceptron(Worker):
    def __init__(self):
        super().__init__()
        import perceptron

        self.infer = perceptron.infer
        self.net = perceptron.build()

    def forward(self, data):
        return {"outputs": self.infer(self.net, data["inputs"])}


class Batched(Worker):
    def __init__(self):
        super().__init__()
        import perceptron

        self.infer_each = perceptron.infer_each
        self.net = perceptron.build()

    def forward(self, data):
        found = self.infer_each(self.net, [one["inputs"] for one in data])
        return [{"outputs": outputs} for outputs in found]


if __name__ == "__main__":
    case, port, wait_ms = sys.argv[1:]
    # mosec reads its options from here, and so do the processes that it starts.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--timeout", "30000"]
    sys.argv += ["--log-level", "warning", "--max-request-size", str(LARGEST_BODY)]
    server = Server()
    if case == "mlp-batched":
        server.append_worker(
            Batched, max_batch_size=16, max_wait_time=int(wait_ms), route="/predict"
        )
    else:
        workers = {"echo": Echo, "body-1mb": Body, "mlp": Perceptron}
        server.append_worker(workers[case], route="/predict")
    server.run()
