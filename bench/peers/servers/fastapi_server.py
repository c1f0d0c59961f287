"""FastAPI on uvicorn with uvloop and httptools, one process. `fastapi_server.py CASE PORT`."""

import sys
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI

CASE, PORT = sys.argv[1], int(sys.argv[2])
Event = Annotated[dict[str, Any], Body()]
app = FastAPI()

if CASE == "echo":

    @app.post("/predict")
    async def echo(event: Event) -> dict[str, Any]:
        return event

else:
    import perceptron

    net = perceptron.build()

    @app.post("/predict")
    async def infer(event: Event) -> dict[str, Any]:
        return {"outputs": perceptron.infer(net, event["inputs"])}


uvicorn.run(app, host="127.0.0.1", port=PORT, loop="uvloop", http="httptools", access_log=False)
