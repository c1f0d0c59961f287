"""An OpenWhisk action as it stands: a dict in, a dict out."""

from typing import Any


def main(args: dict[str, Any]) -> dict[str, Any]:
    name = args.get("name", "stranger")
    if not isinstance(name, str):
        return {"error": "name must be text"}
    return {"greeting": f"Hello, {name}!"}
