"""`cram demo`: a page to try one or more models."""

from __future__ import annotations

import argparse
import contextlib

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    demo = add_command(
        commands,
        "demo",
        run,
        "Serve a page on this machine to type masked sentences and compare models.",
        ["cram demo runs/cram-cpu", "cram demo runs/base runs/muon --port 8000"],
    )
    demo.add_argument("models", nargs="+", metavar="MODEL", help="run folder, model folder, or name on the hub")
    demo.add_argument("--port", type=int, default=7860, help="port on 127.0.0.1; 0: a free one (default: 7860)")


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from cram_composer.evaluation.demo import HOST, load_demo_model, open_server

    models = [load_demo_model(name) for name in options.models]
    with open_server(models, options.port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"http://{HOST}:{server.server_port}  (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0
