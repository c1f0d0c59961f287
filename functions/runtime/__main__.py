"""Starts a zygote: `python -I .../functions/runtime CONTROL_FD`, run as a folder; or the zygote
server of containers: `--listen SOCKET`.

The package is registered under a private name: nothing here can hide, or be hidden by, a module
of the function.
"""

import importlib.util
import os
import sys

PRIVATE_NAME = "_faasd_runtime"


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location(
        PRIVATE_NAME, os.path.join(here, "__init__.py"), submodule_search_locations=[here]
    )
    if spec is None or spec.loader is None:
        sys.exit("the runtime's own files are incomplete")
    package = importlib.util.module_from_spec(spec)
    sys.modules[PRIVATE_NAME] = package
    spec.loader.exec_module(package)
    if sys.path and os.path.abspath(sys.path[0]) == here:
        del sys.path[0]
    # msgpack, for images that do not have it: theirs comes first.
    sys.path.append(os.path.join(here, "packages"))
    if sys.argv[1] == "--listen":
        server = importlib.import_module(PRIVATE_NAME + ".server")
        server.main(sys.argv[2])
    else:
        zygote = importlib.import_module(PRIVATE_NAME + ".zygote")
        zygote.main(int(sys.argv[1]))


if __name__ == "__main__":
    main()
