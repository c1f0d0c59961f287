"""What one writes by hand: aiohttp on uvloop, orjson, one process. `aiohttp_server.py CASE PORT`."""

import asyncio
import sys

import orjson
import uvloop
from aiohttp import web

CASE, PORT = sys.argv[1], int(sys.argv[2])


async def echo(request: web.Request) -> web.Response:
    event = orjson.loads(await request.read())
    return web.Response(body=orjson.dumps(event), content_type="application/json")


async def body(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type="application/octet-stream")


def perceptron():
    import perceptron

    net = perceptron.build()

    async def infer(request: web.Request) -> web.Response:
        event = orjson.loads(await request.read())
        outputs = perceptron.infer(net, event["inputs"])
        return web.Response(
            body=orjson.dumps({"outputs": outputs}), content_type="application/json"
        )

    return infer


async def serve() -> None:
    handler = {"echo": lambda: echo, "body-1mb": lambda: body, "mlp": perceptron}[CASE]()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/predict", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", PORT).start()
    await asyncio.Event().wait()


uvloop.run(serve())
