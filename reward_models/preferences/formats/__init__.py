"""The formats in which preferences lie in files: one file, one family."""

from __future__ import annotations

from reward_models.preferences.formats.argilla import ARGILLA
from reward_models.preferences.formats.base import Format, Row
from reward_models.preferences.formats.best_of import BEST_OF
from reward_models.preferences.formats.label_studio import LABEL_STUDIO
from reward_models.preferences.formats.pairs import CONVERSATIONS, PAIRS, TRANSCRIPTS
from reward_models.preferences.formats.potato import POTATO
from reward_models.preferences.formats.qa_feedback import QA_FEEDBACK
from reward_models.preferences.formats.rankings import RANKINGS
from reward_models.preferences.formats.ratings import RATINGS, SCORED_TEXTS
from reward_models.preferences.formats.summaries import SUMMARIES
from reward_models.preferences.formats.votes import ANSWER_PAIRS, VOTES, vote_score

__all__ = ["FORMATS", "Format", "Row", "vote_score"]

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        LABEL_STUDIO,
        ARGILLA,
        POTATO,
        QA_FEEDBACK,
        SUMMARIES,
        BEST_OF,
        ANSWER_PAIRS,
        VOTES,
        CONVERSATIONS,
        PAIRS,
        TRANSCRIPTS,
        RANKINGS,
        RATINGS,
        SCORED_TEXTS,
    )
}
"""By name, in the order in which they are tried: the more particular ones first."""
