"""`lm-env rm serve`: a reward behind HTTP."""

from __future__ import annotations

import os
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="The folder of a reward model, a classifier's folder or hub id, 'lexicon',"
            " 'package.module:function' or 'file.py:function'."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 127.0.0.1 cannot be reached from other machines, 0.0.0.0 can.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Anyone who reaches the port may have texts scored.")
    ] = False,
    max_texts: Annotated[int, typer.Option(help="Texts that a request may have, and a batch.", min=1)] = 1024,
    max_bytes: Annotated[int, typer.Option(help="Bytes that a request may have.", min=1)] = 2**24,
    max_waiting: Annotated[
        int, typer.Option(help="Texts that may wait; more are refused until there is room.", min=1)
    ] = 8192,
    seconds: Annotated[float, typer.Option(help="Seconds until a request without an answer is given up.")] = 600.0,
    label: Annotated[
        str | None, typer.Option(help="Of a classifier with several labels: the one whose logit is the reward.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: CUDA, where there is one]")] = (
        None
    ),
    download: Annotated[bool, typer.Option("--download", help="Allow fetching hub ids.")] = False,
) -> None:
    """Serve a reward over HTTP; its address is what `--reward` of the other commands takes.

    The token that clients need is read from the environment variable LM_ENV_REWARD_TOKEN; if it is not set, a fresh one
    is made and printed.  Ctrl-C or SIGTERM ends the server, after the requests under way.
    """
    from lm_env.errors import ConfigurationError
    from lm_env.runs.console import say
    from reward_models.loading import load_reward
    from reward_models.serving.address import TOKEN_VARIABLE, is_loopback, is_reward_url
    from reward_models.serving.scorer import Limits
    from reward_models.serving.server import RewardServer, new_token

    if is_reward_url(model):
        raise ConfigurationError(f"{model} is a reward server already: name the reward that it serves")
    options = {} if label is None else {"label": int(label) if label.isdigit() else label}
    given = None if no_token else os.environ.get(TOKEN_VARIABLE)
    token = None if no_token else given or new_token()
    server = RewardServer(
        lambda: load_reward(model, device=device, download=download, **options),
        lazy=True,
        host=host,
        port=port,
        token=token,
        limits=Limits(max_texts, max_bytes, max_waiting, seconds),
    )
    say("reward", f"{server.info.name}, fingerprint {server.info.fingerprint}")
    say("address", f"{server.url}, for --reward, or reward_models.RemoteReward({server.url!r})")
    if token is None:
        say("token", "none: anyone who reaches the port may have texts scored")
        if not is_loopback(host):
            say("", "and other machines reach it: leave --no-token out, unless the network is yours alone")
    elif given is None:
        say("token", f"clients need it:  export {TOKEN_VARIABLE}={token}")
    else:
        say("token", f"that of {TOKEN_VARIABLE}, which clients need as well")
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn sends it on, once all is answered
        say("", "ended")
