"""`lm-env check-loss`: what a loss optimizes, from its exact expected gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lm_env.theory.loss import LossCheck

__all__ = ["check_loss_command"]


def check_loss_command(
    name: Annotated[
        str,
        typer.Argument(
            help="ppo, a2c, rloo, grpo, sb3-ppo, trl-grpo, trl-rloo, torchrl-ppo, ..., or your own 'file.py:function'"
            " or 'package.module:function' that takes loss(batch)."
        ),
    ],
    beta: Annotated[float, typer.Option(help="Weight of the KL penalty.")] = 0.5,
    group_size: Annotated[
        int | None, typer.Option(help="Responses per prompt, 1 to 3.  [default: 2, or 1 for losses without groups]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the MDPs, policies and scores.", min=0)] = 0,
    require: Annotated[
        str, typer.Option(help="What must hold on every batch: of padding, eos, permutation, micro_batches, ratio.")
    ] = "padding,eos,permutation",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a loss optimizes, without training: its exact expected gradient beside that of the objective.

    PASS if it points along the gradient of E[score] - beta KL; else FAIL, with the mistakes that explain it, where
    these are known ones.  Exit status 0 or 1.
    """
    import json

    from agents.check_losses import UNGROUPED, named_loss
    from lm_env.objective.functions import load_function
    from lm_env.theory.loss import check_loss

    loss = load_function(name, "loss(batch)") if ":" in name else named_loss(name)
    if group_size is None:
        group_size = 1 if name in UNGROUPED else 2
    required = [kind.strip() for kind in require.split(",") if kind.strip()]
    check = check_loss(loss, name=name, beta=beta, group_size=group_size, seed=seed, require=required)
    if as_json:
        print(json.dumps(check.as_dict()))
    else:
        _show(check)
    raise typer.Exit(0 if check.passed else 1)


def _show(check: LossCheck) -> None:
    """The verdict for people."""
    sizes = ", ".join(f"{size:.3g}" for size in check.along)
    numbers = "".join(f", {name} {value:.4g}" for name, value in check.numbers.items())
    print(f"{check.loss}, beta {check.beta:g}, {check.group_size} response(s) per group")
    print(f"  gradient: cosine {check.cosine:.6f}, orthogonal {check.orthogonal:.1e}, along {sizes}{numbers}")
    print(f"  importance ratio: {check.ratio}")
    for note in check.notes:
        print(f"  note: {note}")
    print(f"  {check.sentence()}")
