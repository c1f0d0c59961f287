"""LitServe, one API process and one worker. `litserve_server.py CASE PORT`."""

import sys

import litserve

CASE, PORT = sys.argv[1], int(sys.argv[2])
BATCH_WAIT_S = 0.005


class Echo(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, x):
        return x


class Perceptron(litserve.LitAPI):
    def setup(self, device):
        import perceptron

        self.perceptron = perceptron
        self.net = perceptron.build()

    def decode_request(self, request):
        return request["inputs"]

    def predict(self, x):
        return self.perceptron.infer(self.net, x)

    def encode_response(self, output):
        return {"outputs": output}


class Batched(Perceptron):
    def batch(self, inputs):
        return inputs

    def predict(self, x):
        return self.perceptron.infer_each(self.net, x)

    def unbatch(self, output):
        return output


if __name__ == "__main__":
    if CASE == "mlp-batched":
        api = Batched(max_batch_size=16, batch_timeout=BATCH_WAIT_S, api_path="/predict")
    else:
        api = {"echo": Echo, "mlp": Perceptron}[CASE](api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
