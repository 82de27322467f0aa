"""The taskset of verifiers: whole episodes by verifiers' own environment, against a server on this machine."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import numpy as np
import pytest
import torch

from lm_env import TextGenerationEnv
from lm_env.errors import ConfigurationError
from lm_env.generation import LocalBackend, Sampling
from lm_env.tasks import TextTask

vf = pytest.importorskip("verifiers.v1")

from verifiers.v1.utils.loaders import load_environment, resolve_env_config  # noqa: E402

from lm_env.export.verifiers import OneReply, TextEnv, TextTasksetConfig, to_verifiers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

CHAT = [{"role": "system", "content": "films"}, {"role": "user", "content": "a good film"}]
ROWS = [{"prompt": "a good film", "worth": 1.0}, {"prompt": "the end", "worth": 2.0}, {"prompt": "bad", "worth": 4.0}]
ENDS = [0, *range(40, 80)]


def by_text(prompts, responses, worth):
    return [w + len(p) / 100 + sum(map(ord, r)) / 1000 for p, r, w in zip(prompts, responses, worth, strict=True)]


def lengths(prompts, responses):
    return [len(r) for r in responses]


@pytest.fixture
def answering():
    """`answering(answers)` -> (address, requests): a server of OpenAI's kind with an answer for each last message."""
    servers = []

    def start(answers):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                requests.append(request)
                text, finish = answers[request["messages"][-1]["content"]]
                message = {"role": "assistant", "content": text}
                answer = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": request["model"],
                    "choices": [{"index": 0, "finish_reason": finish, "message": message}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                }
                status = 500 if text is None else 200
                data = json.dumps({"error": {"message": "broken"}} if text is None else answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/v1", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def installed(monkeypatch):
    """`installed(taskset)`: the id of a module with this taskset, as verifiers finds its plugins."""

    def install(taskset):
        module = ModuleType("films_v1")
        module.Films, module.OneReply, module.TextEnv = taskset, OneReply, TextEnv
        module.__all__ = ["Films", "OneReply", "TextEnv"]
        monkeypatch.setitem(sys.modules, "films_v1", module)
        return "films-v1"

    return install


def episodes_of(taskset_id, address, split):
    """The traces of all prompts of a split, by verifiers' own environment."""
    env = load_environment(resolve_env_config({"taskset": {"id": taskset_id, "split": split}}))
    context = vf.ModelContext(model="mine", client=vf.EvalClientConfig(base_url=address, api_key_var="NO_SUCH_KEY"))

    async def run():
        async with env.serving():
            slots = [env.slots(task)[0] for task in env.taskset]
            return await asyncio.gather(*(env.run_slot(slot, context) for slot in slots))

    return asyncio.run(run())


@pytest.mark.parametrize("changes", [{}, {"stop_strings": ["e"]}, {"missing_eos_score": -1.0}, {"cap_truncates": True}])
def test_rewards_are_those_of_the_environment(text_task, answering, installed, changes):
    """The server gives texts of the environment's model; each reward is the score of the tokens they came from."""
    env = TextGenerationEnv(**text_task(prompts=ROWS, reward=by_text, eos_token_id=ENDS, temperature=0.7, **changes))
    seen = set()
    for seed in range(3):
        torch.manual_seed(seed)
        episodes = LocalBackend(env.task, 3).generate(list(env.task.prompts), Sampling()).episodes
        paid = env.score(episodes)
        bare = [ids[:-1] if ids[-1] in ENDS else ids for ids in episodes.responses()]
        answers = {
            prompt.text: (env.task.tokenizer.decode(ids), "stop" if ended else "length")
            for prompt, ids, ended in zip(env.task.prompts, bare, paid.ended, strict=True)
        }
        address, requests = answering(answers)
        found = episodes_of(installed(to_verifiers(env)), address, "train")
        assert all(episode.ok for episode in found), found[0].errors
        traces = [episode.traces[0] for episode in found]
        assert [trace.reward for trace in traces] == paid.scores.tolist()
        assert [trace.metrics for trace in traces] == [{"ended": float(ended)} for ended in paid.ended]
        seen |= set(paid.ended.tolist())
        wanted = {"max_tokens": 6, "temperature": 0.7, **({"stop": ["e"]} if "stop_strings" in changes else {})}
        for request in requests:
            assert {name: request[name] for name in ("max_tokens", "temperature", "stop") if name in request} == wanted
        assert sorted(request["messages"][0]["content"] for request in requests) == sorted(answers)
    assert seen == {True, False}


def test_a_task_with_splits_metrics_and_chats(answering, installed, text_lm, tokenizer):
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
    rows = {"train": ROWS, "validation": ROWS, "test": [{"prompt": CHAT, "worth": 1.0}]}
    declared = TextTask(
        id="me/Film-v0",
        summary="films",
        source=rows,
        reward=by_text,
        model=text_lm,
        max_new_tokens=6,
        metrics={"letters": lengths},
    )
    films = to_verifiers(declared, tokenizer=talking)
    address, requests = answering({"a good film": (" good ", "stop")})
    (episode,) = episodes_of(installed(films), address, "test")
    (trace,) = episode.traces
    (request,) = requests
    assert request["messages"] == CHAT
    rendered = "<system> films\n<user> a good film\n<assistant>"
    assert trace.reward == by_text([rendered], [" good "], [1.0])[0]  # spaces and all
    assert trace.metrics == {"letters": 6.0, "ended": 1.0}
    data = trace.task.data
    assert (data.split, data.prompt_index, data.name) == ("test", 0, "me/Film-v0/test/0")
    rebuilt = films.task_type()(type(data).model_validate_json(data.model_dump_json()), vf.TaskConfig())
    asyncio.run(rebuilt.score(trace))  # as a server does, which never loads the taskset
    assert trace.reward == by_text([rendered], [" good "], [1.0])[0]


def test_a_server_that_fails_is_an_error_of_its_episode(text_task, answering, installed):
    env = TextGenerationEnv(**text_task(prompts=ROWS, reward=by_text))
    address, _ = answering({"a good film": (None, ""), "the end": ("x", "stop"), "bad": ("x", "stop")})
    found = episodes_of(installed(to_verifiers(env)), address, "train")
    assert [episode.ok for episode in found] == [False, True, True]
    assert "ProviderError" in found[0].traces[0].errors[0].type


def test_what_verifiers_cannot_do_is_refused(text_task, id_task):
    with pytest.raises(ConfigurationError, match="no task of this name"):
        to_verifiers("lm_env/Nothing-v0")

    def loaded(env, split="test"):
        taskset = to_verifiers(env)
        return list(taskset(TextTasksetConfig(split=split)))

    with pytest.raises(ConfigurationError, match="verifiers exchanges texts"):
        loaded(TextGenerationEnv(**id_task()))
    with pytest.raises(ConfigurationError, match="action_mask, which verifiers"):
        loaded(TextGenerationEnv(**text_task(action_mask=lambda prompt, response: np.ones(1, dtype=bool))))
    plain = TextGenerationEnv(**text_task())
    assert len(loaded(plain)) == len(loaded(plain, "train")) == 3
    with pytest.raises(ConfigurationError, match="has no split 'validation'"):
        loaded(plain, "validation")
