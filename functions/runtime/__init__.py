"""The code that runs inside a sandbox: zygote, template and instance.

Standard library and msgpack only, Python 3.9 or newer, since it is also mounted into images that
faasd did not build. It imports itself by relative names under a private package name, so that a
function may ship a module called `functions`.
"""
