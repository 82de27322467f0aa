"""What a preflight warns of, in words."""

from __future__ import annotations

from lm_env.benchmark.preflight.betas import TARGET_KL
from lm_env.benchmark.preflight.findings import Preflight
from lm_env.objective.task import Task

__all__ = ["GROUP", "concerns"]

GROUP = 8
"""The group size for which the share of groups without variance is counted."""
RARE = 0.97
"""If more of the samples have the lowest score, a rollout holds too few better ones to learn from."""


def concerns(found: Preflight, task: Task) -> list[str]:
    """What should be looked at before a training, in sentences."""
    gamed = [
        f"{text.name} scores above the real text on {text.beats:.0%} of the prompts: the reward can be gamed, so keep"
        " the penalty (beta) and read samples while it trains"
        for text in found.degenerate
        if text.beats > 0.5
    ]
    if found.std == 0:
        alike = f"all {found.prompts * found.samples} samples score {found.score:g}: nothing can be learned from them"
        return [alike, *gamed]
    said = []
    commonest, share = found.commonest
    if commonest == found.lowest and share > RARE:
        said.append(
            f"only {1 - share:.1%} of the samples score more than {commonest:g}, about {128 * (1 - share):.1f}"
            " of the 128 texts of a rollout: learning will be slow, or not begin; take easier prompts, pay for parts"
            " of the goal, or fine-tune the model on good texts first (lm-env sft)"
        )
    if found.equal_groups > 0.5:
        said.append(
            f"{found.equal_groups:.0%} of groups of {GROUP} samples score all alike, so GRPO and RLOO learn from the"
            " rest only: take easier prompts, larger groups, or a finer reward"
        )
    top = found.histogram[-1][2] / (found.prompts * found.samples)
    if top > 0.9:
        said.append(f"{top:.0%} of the samples score near the highest score seen: little is left to be learned")
    if found.length_correlation is not None and abs(found.length_correlation) > 0.5:
        longer = "longer" if found.length_correlation > 0 else "shorter"
        said.append(
            f"the score goes with the length (rank correlation {found.length_correlation:+.2f}): the policy may learn"
            f" to write {longer} texts and nothing else"
        )
    said += gamed
    if found.ended == 0 and task.missing_eos_score is not None:
        said.append("no text ends by itself, so all are paid missing_eos_score: raise max_new_tokens")
    elif found.truncated > 0.25 and task.missing_eos_score is not None:
        said.append(
            f"{found.truncated:.0%} of the texts do not end before the cap of {task.max_new_tokens} tokens and are paid"
            f" {task.missing_eos_score:g} (missing_eos_score): the policy will learn to end first; a larger"
            " max_new_tokens spares it that"
        )
    elif found.truncated > 0.95 and task.eos_token_ids:
        said.append(
            f"{found.truncated:.0%} of the texts run to the cap of {task.max_new_tokens} tokens: the reward mostly sees"
            " unfinished texts, unless that is meant"
        )
    if found.suggested_beta is not None and found.beta > 0:
        ratio = found.beta / found.suggested_beta
        own = found.at(found.beta)
        assert own is not None, "the task's beta is among the betas"
        at = f"its optimum is at {own.KL:.2g} nats with the score {own.score:.3g}, from {found.score:.3g}"
        if ratio > 4:
            said.append(
                f"beta {found.beta:g} holds the policy close to the reference ({at}); try {found.suggested_beta:g}"
            )
        if ratio < 1 / 4 and own.KL > TARGET_KL:
            said.append(
                f"beta {found.beta:g} allows texts far from the reference ({at}), where a reward is easily gamed; try"
                f" {found.suggested_beta:g}"
            )
    if found.beta == 0:
        remedy = "" if found.suggested_beta is None else f"; try {found.suggested_beta:g}"
        said.append(f"beta is 0: nothing keeps the texts near the reference{remedy}")
    return said
