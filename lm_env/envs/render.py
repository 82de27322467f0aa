"""An episode as colored text for a terminal: each token of the response by its log-ratio or reward.

Pure functions from text to text.  What a model wrote is untrusted: control characters are shown,
never sent, so that no response can move the cursor, rename the window or recolor the rest.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Literal

from rich.color import ColorSystem
from rich.style import Style

from lm_env.data.pieces import tokens_from_ids
from lm_env.data.tokenizing import Tokenizer
from lm_env.envs.state import SlotState
from lm_env.errors import ConfigurationError
from lm_env.validation import check_choice

__all__ = ["RENDER_MODES", "checked_render_mode", "print_render", "render_episode", "render_state", "tokens_from_ids"]

RENDER_MODES = ["ansi", "human"]

# Steps of the 256-color palette from pale to strong, all light enough for the black text on them,
# so that dark and light terminals show the same; near zero the terminal's own colors stand.
_NEGATIVE = (224, 217, 210, 203)
_POSITIVE = (194, 157, 120, 83)
_SMALLEST_SCALE = 0.1  # rounding noise in the logprobs must not be blown up to full color

# C0, DEL and C1 controls, the separators and direction marks that reorder a line, lone surrogates.
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_COLOR_CODE = re.compile(r"\x1b\[[0-9;]*m")


def render_state(state: SlotState, tokenizer: Tokenizer | None, values: str = "kl") -> str:
    """An episode up to now as `render_episode` shows it, colored by `"kl"` (the log-ratio) or by `"reward"`."""
    start = len(state.prompt.ids)
    return render_episode(
        state.prompt.text,
        tokens_from_ids(tokenizer, state.ids.tolist())[start:],
        (state.log_ratios if values == "kl" else state.rewards).tolist(),
        score=None if state.running else state.score,
        quantity="log-ratio" if values == "kl" else "reward",
        color=None,
    )


def render_episode(
    prompt: str,
    tokens: Sequence[str],
    values: Sequence[float] | None,
    *,
    score: float | None = None,
    title: str | None = None,
    quantity: Literal["log-ratio", "reward"] = "log-ratio",
    color: bool | None = True,
    scale: float | None = None,
) -> str:
    r"""Return the text so far, its response colored token by token, and a last line that sums it up.

    Args:
        prompt: shown dim.
        tokens: the T response tokens as text, for instance from `tokens_from_ids`.
        values: T numbers, or None for no colors.  Negative is red, positive green.
        score: the reward model's score; None while the episode runs.
        title: a first line.
        quantity: what the values are: log pi - log pi_ref of each token in nats, whose sum estimates
            the KL to the reference, or the token's reward.
        color: False writes no escape codes; None decides by the environment variable NO_COLOR.
        scale: the absolute value with the strongest color; None takes the largest one given.

    Returns:
        Lines without a final newline.  A newline of the text is marked `↵`, and other control
        characters are written out, as in `\x1b`.

    Raises:
        ConfigurationError: there are not as many values as tokens, or the scale is not positive.
    """
    numbers = [0.0] * len(tokens) if values is None else [float(value) for value in values]
    if len(numbers) != len(tokens):
        raise ConfigurationError(f"{len(numbers)} values for {len(tokens)} tokens: give one value per token")
    if scale is None:
        scale = max([_SMALLEST_SCALE, *(abs(number) for number in numbers if math.isfinite(number))])
    if not (0 < scale < math.inf):
        raise ConfigurationError(f"scale={scale!r} must be a positive number")
    if color is None:
        color = not os.environ.get("NO_COLOR")

    lines = [] if title is None else [_styled(title, Style(bold=True), color)]
    response = "".join(
        _styled(token, _style(number, scale), color) for token, number in zip(tokens, numbers, strict=True)
    )
    lines.append(_styled(prompt, Style(dim=True), color) + response)
    summary = [] if score is None else [f"score {score:+.3f}"]
    if values is not None:
        total = sum(numbers)
        sums = {"log-ratio": f"sum of KL {total:+.3f} nats", "reward": f"sum of rewards {total:+.3f}"}
        summary.append(f"{sums[quantity]} over {len(tokens)} tokens")
        if color:
            ends = (_styled(f" {end:+.2f} ", _style(end, scale), color) for end in (-scale, scale))
            summary.append(f"{quantity} " + " 0 ".join(ends))
    return "\n".join([*lines, " | ".join(summary)] if summary else lines)


def print_render(text: str, end: str = "\n") -> None:
    """Print what one of the functions above returned: with its colors in a terminal, and without them elsewhere.

    The environment variables NO_COLOR and FORCE_COLOR (which a pager may want) decide otherwise.
    """
    colored = sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
    if not colored or os.environ.get("NO_COLOR"):
        text = _COLOR_CODE.sub("", text)  # the text's own control characters were written out, so these are ours
    print(text, end=end)


def checked_render_mode(mode: str | None, values: str) -> str | None:
    """The render mode, once it and the values to show are known to exist.

    Raises:
        ConfigurationError: they do not.
    """
    if mode == "rgb_array":  # what stable-baselines3's make_vec_env asks of every environment
        return None
    if mode is not None:
        check_choice("render_mode", mode, RENDER_MODES)
    check_choice("render_values", values, ("kl", "reward"))
    return mode


def _style(value: float, scale: float) -> Style:
    """Return black on the shade of red or green for a value, or no style near zero and for NaN."""
    steps = _NEGATIVE if value < 0 else _POSITIVE
    level = 0 if math.isnan(value) else round(len(steps) * min(1.0, abs(value) / scale))
    return Style.parse(f"color(16) on color({steps[level - 1]})") if level else Style.null()


def _styled(text: str, style: Style, color: bool) -> str:
    """Escape the text, and style each line by itself, lest a background run on to the margin."""
    shown = _CONTROL.sub(lambda match: repr(match[0])[1:-1], text).replace("\n", "↵\n")
    if not color:
        return shown
    return "\n".join(style.render(line, color_system=ColorSystem.EIGHT_BIT) for line in shown.split("\n"))
