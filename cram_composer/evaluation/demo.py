"""A page on this machine that fills in masked sentences, with one or more models beside each other."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cram_composer.analysis.html.templating import render
from cram_composer.config.schema.run import ExportConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.model_source import find_model
from cram_composer.models.export import fill_every_mask

HOST = "127.0.0.1"
_GUESSES = 5
_LONGEST = 4000  # characters of a sentence


@dataclass(frozen=True)
class DemoModel:
    """A model of the page; `report` is that of its run."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: Path | None

    def fill(self, sentence: str) -> dict[str, Any]:
        """Return the guesses for each [MASK] of the sentence, or the problem with it."""
        mask = str(self.tokenizer.mask_token)
        try:
            masks = fill_every_mask(self.model, self.tokenizer, sentence.replace("[MASK]", mask), _GUESSES)
        except CramError as error:
            return {"problem": str(error)}
        if len(masks) < sentence.count("[MASK]"):
            return {"problem": f"the sentence is too long for this model; it read {len(masks)} of its [MASK]"}
        return {"masks": masks}


def load_demo_model(name: str) -> DemoModel:
    """Load a run's export, a model folder or a model of the hub. Raises CramError."""
    source = find_model(name)
    tokenizer = source.load_tokenizer()
    if tokenizer.mask_token is None:
        raise CramError(f"{name}: its tokenizer has no mask token, so it cannot fill in masks")
    report = Path(name) / "report.html"
    shown = Path(name).absolute().name if Path(name).is_dir() else name
    model = source.masked_lm_source().load_masked_lm(0)
    return DemoModel(shown, model, tokenizer, report if report.is_file() else None)


def open_server(models: list[DemoModel], port: int) -> ThreadingHTTPServer:
    """Open the page's server, which `serve_forever` runs; port 0 chooses a free one. Raises CramError."""
    handler = type("_Handler", (_Handler,), {"models": models, "page": _page(models), "lock": threading.Lock()})
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CramError(f"--port {port}: cannot be opened ({reason}); choose another, or 0 for a free one") from None


def _page(models: list[DemoModel]) -> bytes:
    shown = [
        {
            "name": one.name,
            "facts": f"{one.model.num_parameters():,} parameters, {type(one.model).__name__}",
            "has_report": one.report is not None,
        }
        for one in models
    ]
    title = " and ".join(one.name for one in models)
    values = {"title": title, "models": shown, "sentences": ExportConfig().sentences, "longest": _LONGEST}
    return render("demo.html.j2", **values).encode()


class _Handler(BaseHTTPRequestHandler):
    models: list[DemoModel]
    page: bytes
    lock: threading.Lock  # the models run one at a time

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer with the page, or the report of a run."""
        reports = {f"/report/{index}": one.report for index, one in enumerate(self.models)}
        if not self._is_local():
            self._send(403, b"forbidden", "text/plain")
        elif self.path == "/":
            self._send(200, self.page, "text/html")
        elif (report := reports.get(self.path)) is not None and report.is_file():
            self._send(200, report.read_bytes(), "text/html")
        else:
            self._send(404, b"not found", "text/plain")

    def do_POST(self) -> None:
        """Answer with the guesses of every model."""
        # A page of another site cannot send this type without asking first, which no answer here allows.
        if not self._is_local() or self.path != "/fill" or self.headers.get("Content-Type") != "application/json":
            self._send(403, b"forbidden", "text/plain")
            return
        status, found = 200, self._fill()
        if "problem" in found:
            status = 400
        self._send(status, json.dumps(found).encode(), "application/json")

    def _fill(self) -> dict[str, Any]:
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if length > 8 * _LONGEST:
                return {"problem": f"give a sentence of at most {_LONGEST} characters"}
            sentence = json.loads(self.rfile.read(length))["sentence"]
            if not isinstance(sentence, str):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            return {"problem": "give a sentence"}
        if "[MASK]" not in sentence or len(sentence) > _LONGEST:
            return {"problem": f"give a sentence with [MASK], of at most {_LONGEST} characters"}
        with self.lock:
            return {"models": [one.fill(sentence) for one in self.models]}

    def _is_local(self) -> bool:
        """Return False for a request by another name than this machine's, as after DNS rebinding."""
        return (self.headers.get("Host") or "").partition(":")[0] in (HOST, "localhost")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)
