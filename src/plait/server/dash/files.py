"""The page's files, by name, and the policy that browsers hold them to."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No script but our files, no connection but to this server."""
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
PAGE = (
    "align.js",
    "app.js",
    "charts.js",
    "dash.css",
    "format.js",
    "front.js",
    "instances.js",
    "lanes.js",
    "log.js",
    "requests.js",
    "stream.js",
    "tiles.js",
)
VENDOR = ("htm.js", "preact.js", "uplot.css", "uplot.js")
SHELL = frozenset(
    {"/dash", *(f"/dash/{name}" for name in PAGE), *(f"/dash/vendor/{name}" for name in VENDOR)}
)
"""Paths that need no key: a browser cannot send one before the page asks for it."""
