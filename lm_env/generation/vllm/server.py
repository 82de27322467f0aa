"""VLLMServer: a `GenerationBackend` whose texts are written by a vLLM server, over HTTP.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --max-model-len 512

The server holds weights of its own.  New weights are handed over before the next generation, under a name, and the
server is asked for the name of what it has before and after every generation: texts of other weights are an error.
"""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lm_env.data.prompts import Prompt
from lm_env.errors import BackendError, ConfigurationError, StaleWeightsError
from lm_env.generation.backend import Generation, Sampling
from lm_env.generation.vllm.texts import Answer, as_generation, check_extra, check_task, sampling_fields, seeds_of
from lm_env.generation.vllm.weights import write_weights
from lm_env.models.weight_watch import WeightWatch
from lm_env.objective.task import Task
from lm_env.progress import Progress
from lm_env.validation import check_integer, check_number

__all__ = ["VLLMServer"]

MODE = "processed_logprobs"
"""The logprobs that the server must give: those of the distribution sampled from, temperature included."""


class VLLMServer:
    """Texts from a vLLM server.

    Give it to an agent: `agent.backend = VLLMServer(agent.task, url, weights="/shared/weights")`.

    Args:
        task: whose model is under training.
        url: of the server, such as "http://localhost:8000".  It serves a model of the same architecture and vocabulary.
        weights: a folder that the server reads under the same path; new weights are written there, whole or not at all.
        concurrent: how many texts are asked for at a time.
        timeout: seconds that an answer may take.
        extra: more fields of each request, such as `priority`; what changes the distribution is refused.

    Raises:
        ConfigurationError: the task masks tokens; `extra` holds a filter; the server was started without its
            development mode, or gives other logprobs than those of the distribution sampled from.
        BackendError: there is no server at this place.
    """

    def __init__(
        self,
        task: Task,
        url: str,
        weights: str | Path,
        *,
        concurrent: int = 64,
        timeout: float = 600.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        check_task(task)
        check_extra(extra or {})
        self.task = task
        self.url = url.rstrip("/")
        self.weights = Path(weights).absolute()
        self.concurrent = check_integer("concurrent", concurrent)
        self.timeout = check_number("timeout", timeout, low=0.0, above=True)
        self.extra = dict(extra or {})
        self._watch = WeightWatch(task.model)
        self._version = 0
        self._run = secrets.token_hex(4)
        self._handed_over = False
        self._check_server()
        served = self._call("GET", "/v1/models").get("data")
        if not (isinstance(served, list) and served and isinstance(served[0], dict) and "id" in served[0]):
            raise BackendError(f"{self.url}/v1/models names no model: give the url of a vLLM server")
        self.served: str = str(served[0]["id"])

    @property
    def label(self) -> str:
        """The name under which the server was given the weights that it must write with."""
        return f"lm_env-{self._run}-{self._version}"

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, progress: str | None = None) -> Generation:
        """See `GenerationBackend.generate`; a seed of its own for each text makes it repeatable as far as vLLM is.

        Raises:
            ConfigurationError: there are no prompts, or the uniforms have a wrong shape.
            StaleWeightsError: before or after the generation the server has other weights than it was given.
            BackendError: it cannot be reached, refuses, or its answer is malformed or impossible for the task.
        """
        if not prompts:
            raise ConfigurationError("there is nothing to write to: give at least one prompt")
        seeds = seeds_of(sampling, len(prompts), self.task.max_new_tokens)
        self._hand_over()
        self._check_weights()
        answers: list[Answer] = []
        label = progress or ""
        shown = Progress(len(prompts), label, unit="text", leave=False, enabled=progress is not None)
        with ThreadPoolExecutor(min(self.concurrent, len(prompts))) as pool, shown:
            jobs = zip(prompts, seeds, [sampling.deterministic] * len(prompts), strict=True)
            for answer in pool.map(lambda job: self._text(*job), jobs):
                answers.append(answer)
                shown.update(1)
        self._check_weights()
        return as_generation(self.task, prompts, answers, self._version, sampling.deterministic)

    # -- one text ----------------------------------------------------------------------------------------
    def _text(self, prompt: Prompt, seed: int, deterministic: bool) -> Answer:
        body = {
            "model": self.served,
            "prompt": prompt.ids.tolist(),
            **sampling_fields(self.task, seed, deterministic),
            "return_token_ids": True,
            "add_special_tokens": False,
            **self.extra,
        }
        answer = self._call("POST", "/v1/completions", body)
        try:
            choice = answer["choices"][0]
            tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            return Answer(list(tokens), [float(value) for value in logprobs])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BackendError(
                f"{self.url} gave no token_ids and logprobs ({error!r}): vLLM gives them from 0.10.2 on"
            ) from error

    # -- the weights -------------------------------------------------------------------------------------
    def _hand_over(self) -> None:
        """Give the server the model's present weights, unless it has them."""
        changed = self._watch.changed()
        if not changed and self._handed_over:
            return
        self._version += 1
        self._handed_over = False
        write_weights(self.task, self.weights)
        self._call("POST", "/pause?mode=wait")
        try:
            order = {"method": "reload_weights", "kwargs": {"weights_path": str(self.weights)}}
            self._call("POST", "/collective_rpc", order)
            self._call("POST", "/reset_prefix_cache")  # it holds keys and values of the old weights
            self._call("POST", "/update_weight_version", {"new_version": self.label})
        finally:
            self._call("POST", "/resume")
        self._handed_over = True

    def _check_weights(self) -> None:
        found = self._call("GET", "/weight_info").get("weight_version")
        if found != self.label:
            self._handed_over = False
            raise StaleWeightsError(
                f"{self.url} has the weights {found!r} where {self.label!r} were handed over: another program has"
                " changed them, or the server was started anew; give each training a server of its own, and roll out"
                " again"
            )

    # -- HTTP ----------------------------------------------------------------------------------------------
    def _check_server(self) -> None:
        info = self._call("GET", "/server_info?config_format=json")
        try:
            mode = info["vllm_config"]["model_config"]["logprobs_mode"]
        except (KeyError, TypeError):
            mode = None
        if mode != MODE:
            raise ConfigurationError(
                f"the server gives {mode or 'unknown'} logprobs: start it with --logprobs-mode {MODE}, so that they are"
                " those of the distribution sampled from"
            )

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers; {} for an empty answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                content = response.read()
            answer = json.loads(content) if content.strip() else {}
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()[:300].decode(errors="replace")
            if error.code == 404 and not path.startswith("/v1/"):
                raise ConfigurationError(
                    f"{self.url} has no {path.partition('?')[0]}: start vLLM (0.32 or newer) with"
                    " VLLM_SERVER_DEV_MODE=1 in its environment"
                ) from error
            raise BackendError(f"{self.url}{path} answered {error.code}: {said}") from error
        except (OSError, ValueError) as error:  # a URLError is an OSError, and a JSONDecodeError a ValueError
            raise BackendError(
                f"{self.url}{path} gave no answer ({error}): start a vLLM server there, or correct the url"
            ) from error
        return answer if isinstance(answer, dict) else {}
