"""The requests of the labelling page and their answers, independent of HTTP."""

from __future__ import annotations

import math
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lm_env.errors import ConfigurationError, InvalidPreferenceError
from reward_models.labelling.answers import Answer, Presentation
from reward_models.labelling.choosing import QuestionChooser
from reward_models.labelling.overview import labels_per_minute, survey
from reward_models.labelling.store import LabelStore
from reward_models.preferences.records.preference import LabelledSpan

__all__ = ["LabellingSession", "PageSettings", "checked_name"]

LONGEST_NAME = 64
MOST_AT_ONCE = 9
"""The keys 1 to 9 rank responses and name kinds of spans."""


@dataclass(frozen=True)
class PageSettings:
    """What the page shows besides the questions.

    Attributes:
        instruction: the sentence above each question.
        span_types: kinds of spans that can be marked inside responses; empty: nothing can be marked.
        show: extra columns that are shown below the prompt.
        annotators: who may answer; empty: anybody who gives a name.
    """

    instruction: str = "Which response is better?"
    span_types: tuple[str, ...] = ()
    show: tuple[str, ...] = ()
    annotators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.span_types) > MOST_AT_ONCE or len(set(self.span_types)) < len(self.span_types):
            raise ConfigurationError(f"give at most {MOST_AT_ONCE} different span types, not {self.span_types}")
        for name in (*self.span_types, *self.annotators):
            checked_name(name)


def checked_name(name: Any) -> str:
    """A name of an annotator or of a kind of span, without spaces around it.

    Raises:
        InvalidPreferenceError: it is not a text of 1 to 64 visible characters.
    """
    text = unicodedata.normalize("NFC", name).strip() if isinstance(name, str) else ""
    hidden = any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)
    if not 0 < len(text) <= LONGEST_NAME or hidden:
        raise InvalidPreferenceError(f"a name has 1 to {LONGEST_NAME} visible characters, not {name!r:.80}")
    return text


class LabellingSession:
    """Answers the requests of the page; each takes and returns JSON.

    Every request may raise:
        InvalidPreferenceError: something in the request is malformed.
        ConfigurationError: the request does not fit what is in the file, for example because the question was answered
            in another window.
        CheckpointWriteError: the file cannot be written; nothing was changed.
    """

    def __init__(self, store: LabelStore, chooser: QuestionChooser, settings: PageSettings) -> None:
        self.store = store
        self.chooser = chooser
        self.settings = settings
        self._lock = threading.Lock()
        self.requests = {
            "session": self.session,
            "next": self.next,
            "answer": self.answer,
            "undo": self.undo,
            "marks": self.marks,
            "overview": self.overview,
        }

    def session(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the page has to know at its start."""
        return {
            "store": self.store.id,
            "file": self.store.path.name,
            "instruction": self.settings.instruction,
            "span_types": list(self.settings.span_types),
            "annotators": list(self.settings.annotators),
            "per_item": self.store.per_item,
        }

    def next(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The question that an annotator has open, or their next one.  Takes {"annotator": name}."""
        return self._state(self._annotator(request))

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take an answer and return the next question.

        Takes {"annotator", "id", "presentation", "choice", "ranking", "spans", "seconds"}, see `Answer`.
        """
        annotator = self._annotator(request)
        ranking, seconds = request.get("ranking") or [], request.get("seconds", 0.0)
        name, presentation, choice = (request.get(field) for field in ("id", "presentation", "choice"))
        texts = isinstance(name, str) and isinstance(presentation, str) and isinstance(choice, str)
        if not texts or not isinstance(ranking, list):
            raise InvalidPreferenceError(
                "an answer needs an id, a presentation and a choice as strings, and a ranking as a list"
            )
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise InvalidPreferenceError("the seconds of an answer must be a finite number")
        answer = Answer(str(name), str(presentation), str(choice), tuple(ranking), _spans(request), float(seconds))
        self.store.record(annotator, answer)
        return self._state(annotator)

    def undo(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Undo the last answer and return its question.  Takes {"annotator", "answer": its id}."""
        annotator = self._annotator(request)
        answer = request.get("answer")
        if not isinstance(answer, str):
            raise InvalidPreferenceError("an undo needs the id of the answer, as a string")
        self.store.withdraw(annotator, answer)
        return self._state(annotator)

    def marks(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the spans that are marked in an open question.  Takes {"annotator", "presentation", "spans"}."""
        self._annotator(request)
        presentation = request.get("presentation")
        if not isinstance(presentation, str):
            raise InvalidPreferenceError("marks need the id of the presentation, as a string")
        self.store.mark(presentation, _spans(request))
        return {}

    def overview(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """How the labelling stands."""
        return survey(self.store).as_dict()

    def _annotator(self, request: Mapping[str, Any]) -> str:
        name = checked_name(request.get("annotator"))
        if self.settings.annotators and name not in self.settings.annotators:
            raise InvalidPreferenceError(
                f"{name!r} is not among the annotators of this page: give one of {', '.join(self.settings.annotators)}"
            )
        return name

    def _state(self, annotator: str) -> dict[str, Any]:
        with self._lock:  # the chooser's posterior is shared
            shown = self.store.present(annotator, lambda candidates: self.chooser(annotator, candidates))
        times = self.store.times_of(annotator)
        left = len(self.store.open_to(annotator))
        done, asked = self.store.progress()
        return {
            "question": None if shown is None else self._question(shown),
            "last": self.store.last(annotator),
            "progress": {
                "yours": len(times),
                "left": left,
                "done": done,
                "questions": asked,
                "rate": labels_per_minute(times),
            },
        }

    def _question(self, shown: Presentation) -> dict[str, Any]:
        prompt = shown.prompt if isinstance(shown.prompt, str) else [dict(message) for message in shown.prompt]
        columns = {name: str(shown.columns[name]) for name in self.settings.show if name in shown.columns}
        return {
            "presentation": shown.id,
            "prompt": prompt,
            "columns": columns,
            "responses": list(shown.responses),
            "spans": [asdict(span) for span in shown.spans],
        }


def _spans(request: Mapping[str, Any]) -> tuple[LabelledSpan, ...]:
    spans: Sequence[Any] = request.get("spans") or []
    if not isinstance(spans, list) or not all(isinstance(span, dict) for span in spans):
        raise InvalidPreferenceError("spans must be a list of objects")
    try:
        return tuple(LabelledSpan(**span) for span in spans)
    except TypeError as error:
        raise InvalidPreferenceError(
            "a span must hold response, start, end, kind and weight, and nothing else"
        ) from error
