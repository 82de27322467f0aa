"""A task of your own in a file: the prompts ask for a color, and the score is higher the earlier one is named.

lm-env train --env examples/my_task.py:task --agent ppo --timesteps 20000 --out runs/colors
lm-env train --env my_task:my/Colors-v0 ...        # by its id, if Python can import this module
"""

import re

from lm_env.tasks import TextTask, register_task

COLORS = ("black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "white", "yellow")
THINGS = ("car", "cat", "coat", "dress", "flag", "flower", "hair", "hat", "house", "river", "room", "screen", "sky")


def score(prompts: list[str], responses: list[str], **columns: object) -> list[float]:
    """1 for a color among the first words, less by a tenth for each word before it; 0 if there is none."""
    found = [[word in COLORS for word in re.findall(r"[a-z]+", text.lower())] for text in responses]
    return [max(0.0, 1 - words.index(True) / 10) if True in words else 0.0 for words in found]


def task() -> TextTask:
    """What `--env examples/my_task.py:task` calls; if it had parameters, they would be options of the task."""
    return TextTask(
        id="my/Colors-v0",
        summary="name a color early",
        source=[f"{who} {thing} was" for who in ("The", "Her", "His", "My") for thing in THINGS],
        reward=score,
        beta=0.05,
        max_new_tokens=12,
        temperature=0.7,
        budget=40_000,
        highest=1.0,
    )


register_task("my/Colors-v0", task)
