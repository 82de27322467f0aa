"""What a preflight warns of, in sentences that each end with a remedy where there is one."""

from __future__ import annotations

from lm_env.benchmark.preflight.betas import TARGET_KL
from lm_env.benchmark.preflight.findings import Preflight
from lm_env.objective.task import Task

__all__ = ["GROUP", "warning_sentences"]

GROUP = 8
"""Responses to a prompt that a group agent compares: `Preflight.equal_groups` is of groups of this size."""
ROLLOUT_TEXTS = 128
"""The texts of a rollout where an agent's `rollout_episodes` is left as it is."""
RARE = 0.97
"""If more than this share of the samples has the lowest score, a rollout holds too few better ones to learn from."""


def warning_sentences(found: Preflight, task: Task) -> list[str]:
    """What should be looked at before a training on the task; [] if nothing stands out.

    Args:
        found: the measurements of a preflight; its own `warnings` are not read.
        task: the task that was measured.
    """
    gamed = [
        f'"{text.name}" scores above the sample it is made from on {text.beats:.0%} of the prompts: the reward can be'
        " gamed, so keep the penalty (beta) and read samples while it trains"
        for text in found.degenerate
        if text.beats > 0.5
    ]
    if found.std == 0:
        alike = f"all {found.prompts * found.samples} samples score {found.score:g}: nothing can be learned from them"
        return [alike, *gamed]
    if found.without_variance == 1:
        alike = (
            "the samples of each prompt all score alike, so nothing can be learned from them: a score that depends on"
            " the prompt alone tells no responses apart"
        )
        return [alike, *gamed, *_about_endings(found, task), *_about_beta(found)]
    return [*_about_scores(found), *_about_length(found), *gamed, *_about_endings(found, task), *_about_beta(found)]


def _about_scores(found: Preflight) -> list[str]:
    """Whether scores tell texts apart, and leave something to be learned."""
    sentences = []
    commonest, share = found.commonest
    if commonest == found.lowest and share > RARE:
        sentences.append(
            f"only {1 - share:.1%} of the samples score more than {commonest:g}, about"
            f" {ROLLOUT_TEXTS * (1 - share):.1f} of the {ROLLOUT_TEXTS} texts of a rollout: learning will be slow, or"
            " not begin; take easier prompts, pay for parts of the goal, or fine-tune the model on good texts first"
            " (lm-env sft)"
        )
    if found.equal_groups > 0.5:
        sentences.append(
            f"{found.equal_groups:.0%} of groups of {GROUP} samples score all alike, so GRPO and RLOO learn from the"
            " rest only: take easier prompts, larger groups, or a finer reward"
        )
    highest_bar = found.histogram[-1][2] / (found.prompts * found.samples)
    if highest_bar > 0.9:
        sentences.append(
            f"{highest_bar:.0%} of the samples score near the highest score seen: little is left to be learned"
        )
    return sentences


def _about_length(found: Preflight) -> list[str]:
    """Whether the score can be had by length alone."""
    correlation = found.length_correlation
    if correlation is None or abs(correlation) <= 0.5:
        return []
    return [
        f"the score goes with the length (rank correlation {correlation:+.2f}): the policy may learn to write"
        f" {'longer' if correlation > 0 else 'shorter'} texts and nothing else"
    ]


def _about_endings(found: Preflight, task: Task) -> list[str]:
    """Whether the reward sees finished texts; at most one sentence."""
    penalty, cap = task.missing_eos_score, task.max_new_tokens
    if found.ended == 0 and penalty is not None:
        return ["no text ends by itself, so all are paid missing_eos_score: raise max_new_tokens"]
    if found.truncated > 0.25 and penalty is not None:
        return [
            f"{found.truncated:.0%} of the texts do not end before the cap of {cap} tokens and are paid {penalty:g}"
            " (missing_eos_score): the policy will learn to end first; a larger max_new_tokens spares it that"
        ]
    if found.truncated > 0.95 and task.eos_token_ids:
        return [
            f"{found.truncated:.0%} of the texts run to the cap of {cap} tokens: the reward mostly sees unfinished"
            " texts, unless that is meant"
        ]
    return []


def _about_beta(found: Preflight) -> list[str]:
    """Whether the penalty lets the policy move, and keeps it where the scores still mean what they should."""
    suggested = found.suggested_beta
    if found.beta == 0:
        remedy = "" if suggested is None else f"; try {suggested:g}"
        return [f"beta is 0: nothing keeps the texts near the reference{remedy}"]
    if suggested is None:
        return []
    optimum = found.at(found.beta)
    assert optimum is not None, "the task's beta is among the betas"
    moved = f"its optimum is at {optimum.KL:.2g} nats with the score {optimum.score:.3g}, from {found.score:.3g}"
    ratio = found.beta / suggested
    if ratio > 4:
        return [f"beta {found.beta:g} holds the policy close to the reference ({moved}); try {suggested:g}"]
    if ratio < 1 / 4 and optimum.KL > TARGET_KL:
        return [
            f"beta {found.beta:g} allows texts far from the reference ({moved}), where a reward is easily gamed; try"
            f" {suggested:g}"
        ]
    return []
