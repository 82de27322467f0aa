"""What the order of questions is worth: errors left after so many answers, chosen by information or at random.

python benchmarks/label_order.py

Simulated annotators compare pairs of the four responses to each of ten prompts, whose qualities are normal with a
standard deviation of 1.5 in log odds.  Afterward the responses of each prompt are ordered by the posterior; an error is
a pair in the wrong order.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from reward_models.labelling import Answer, Item, LabelStore, QuestionChooser

PROMPTS, RESPONSES, SEEDS, ANNOTATORS = 10, 4, 30, 6


def errors(path: Path, order: str, answers: int, seed: int) -> float:
    """The share of pairs in the wrong order after so many answers."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(scale=1.5, size=(PROMPTS, RESPONSES))
    store = LabelStore(path, pairs=True, per_item=ANNOTATORS)
    store.add([Item(f"p{i}", tuple(f"{i} {j}" for j in range(RESPONSES))) for i in range(PROMPTS)])
    chooser = QuestionChooser(store, order, seed)
    for step in range(answers):
        name = f"annotator {step % ANNOTATORS}"
        shown = store.present(name, lambda candidates, name=name: chooser(name, candidates))  # type: ignore[misc]
        assert shown is not None
        (item, a), (_, b) = (map(int, text.split()) for text in shown.responses)
        loses = rng.random() > 1 / (1 + np.exp(quality[item, b] - quality[item, a]))
        store.record(name, Answer(str(step), shown.id, "ranked", (int(loses), int(not loses))))
    final = QuestionChooser(store)
    signs = [
        np.sign(final.difference(number) * (quality[item - 1, i] - quality[item - 1, j]))
        for number, (item, (i, j)) in store.questions().items()
    ]
    store.close()
    return float(np.mean([(1 - sign) / 2 for sign in signs]))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for answers in (60, 120):
            for order in ("information", "random"):
                found = [errors(Path(folder) / f"{answers}-{order}-{s}", order, answers, s) for s in range(SEEDS)]
                spread = np.std(found, ddof=1) / SEEDS**0.5
                print(
                    f"{answers} answers, {order}: {np.mean(found):.3f} of the pairs wrong, standard error {spread:.3f}"
                )


if __name__ == "__main__":
    main()
