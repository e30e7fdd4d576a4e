"""`python -m plait.runtime.probe NAME...`: which packages can really be imported, as JSON.

A process of its own, so that whoever asks neither waits for torch to unload nor dies with a broken one.
"""

import importlib
import importlib.metadata
import json
import sys


def probe(name: str) -> dict[str, str]:
    """`version` of a package that imports, else `error`."""
    try:
        importlib.import_module(name)
        return {"version": importlib.metadata.version(name)}
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: probe(name) for name in sys.argv[1:]}))
