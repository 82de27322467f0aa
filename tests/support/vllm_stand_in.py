"""A double of vLLM at its two seams, which runs a real small model: the HTTP server's format, and the Python API.

It knows the requests that lm_env makes and no others; its answers are worded as vLLM 0.32's are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import AutoModelForCausalLM


class Engine:
    """The model and its sampling: one token after the other, each from a forward over the whole text."""

    def __init__(self, folder: str | None = None, model: Any = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval() if model is None else model
        self.version = "default"
        self.calls: list[str] = []
        self.seeds: list[int] = []
        self.fields: list[dict] = []
        self.lock = threading.Lock()

    @torch.no_grad()
    def write(self, ids: list[int], fields: dict) -> tuple[list[int], list[float], str]:
        """(tokens, logprobs, finish_reason)."""
        self.seeds.append(fields["seed"])
        self.fields.append(fields)
        generator = torch.Generator().manual_seed(fields["seed"])
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < fields["max_tokens"]:
            logits = self.model(input_ids=torch.tensor([ids + tokens])).logits[0, -1].double()
            if fields["top_k"] > 0:
                logits[logits < logits.topk(fields["top_k"]).values[-1]] = -torch.inf
            logits = logits / (fields["temperature"] or 1.0)
            distribution = logits.log_softmax(-1)
            greedy = fields["temperature"] == 0
            token = int(logits.argmax() if greedy else torch.multinomial(distribution.exp(), 1, generator=generator))
            tokens.append(token)
            logprobs.append(float(distribution[token]))
            if token in fields["stop_token_ids"]:
                return tokens, logprobs, "stop"
        return tokens, logprobs, "length"

    def reload(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()


class Server(ThreadingHTTPServer):
    """`vllm serve`, as far as it is asked for; the attributes change how it misbehaves."""

    daemon_threads = True

    def __init__(self, model: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine = Engine(model=model)
        self.mode = "processed_logprobs"
        self.dev_mode = True
        self.answer: Any = None
        """Given in place of every completion."""
        self.stolen = False
        """Another program changes the weights while texts are written."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """The endpoints by their paths."""

    server: Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/v1/models":
            self._say({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        elif path == "/server_info" and self.server.dev_mode:
            self._say({"vllm_config": {"model_config": {"logprobs_mode": self.server.mode}}})
        elif path == "/weight_info" and self.server.dev_mode:
            self._say({"weight_version": self.server.engine.version})
        else:
            self._say({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fields = json.loads(body) if body else {}
        path = urlsplit(self.path).path
        engine = self.server.engine
        with engine.lock:
            engine.calls.append(path)
            if path == "/v1/completions":
                self._complete(fields)
            elif not self.server.dev_mode:
                self._say({"detail": "Not Found"}, 404)
            elif path == "/collective_rpc":
                assert fields["method"] == "reload_weights"
                engine.reload(fields["kwargs"]["weights_path"])
                self._say({"results": [None]})
            elif path == "/update_weight_version":
                engine.version = fields["new_version"]
                self._say({"success": True, "new_version": engine.version})
            elif path in ("/pause", "/resume"):
                self._say({"status": "paused" if path == "/pause" else "resumed"})
            elif path == "/reset_prefix_cache":
                self._say(None)
            else:
                self._say({"detail": "Not Found"}, 404)

    def _complete(self, fields: dict) -> None:
        assert fields["model"] == "tiny" and fields["return_token_ids"] is True
        tokens, logprobs, reason = self.server.engine.write(fields["prompt"], fields)
        if self.server.stolen:
            self.server.engine.version = "another program's"
        choice = {
            "index": 0,
            "text": "",
            "logprobs": {"tokens": [], "token_logprobs": logprobs, "top_logprobs": [], "text_offset": []},
            "finish_reason": reason,
            "token_ids": tokens,
            "prompt_token_ids": fields["prompt"],
        }
        whole = {"id": "cmpl-1", "object": "text_completion", "model": "tiny", "choices": [choice]}
        self._say(whole if self.server.answer is None else self.server.answer)

    def _say(self, content: Any, status: int = 200) -> None:
        data = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(model: Any) -> Iterator[Server]:
    """A server on loopback, until the end of `with`."""
    with Server(model) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def module() -> ModuleType:
    """The module `vllm` with `LLM` and `SamplingParams`."""

    class LLM:
        def __init__(self, model: str, logprobs_mode: str, skip_tokenizer_init: bool = False, **options: Any) -> None:
            assert logprobs_mode == "processed_logprobs"
            self.engine = Engine(model)
            self.options = options

        def generate(self, prompts: list[dict], parameters: list[dict], use_tqdm: bool) -> list[Any]:
            return [self._one(p["prompt_token_ids"], fields) for p, fields in zip(prompts, parameters, strict=True)]

        def _one(self, ids: list[int], fields: dict) -> Any:
            tokens, logprobs, reason = self.engine.write(ids, fields)
            at = [{t: SimpleNamespace(logprob=x)} for t, x in zip(tokens, logprobs, strict=True)]
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=at, finish_reason=reason)])

        def collective_rpc(self, method: str, kwargs: dict) -> None:
            assert method == "reload_weights"
            self.engine.calls.append(method)
            self.engine.reload(kwargs["weights_path"])

        def reset_prefix_cache(self) -> None:
            self.engine.calls.append("reset_prefix_cache")

    made = ModuleType("vllm")
    made.LLM = LLM  # type: ignore[attr-defined]
    made.SamplingParams = lambda **fields: fields  # type: ignore[attr-defined]
    return made
