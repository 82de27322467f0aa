"""Judgements of people, given on a local page: the questions, the file of answers, agreement, and export as records."""

from __future__ import annotations

from reward_models.labelling.answers import Answer, Presentation, StoredAnswer
from reward_models.labelling.choosing import QuestionChooser
from reward_models.labelling.export import export_labels, merged_records, records_of
from reward_models.labelling.items import Item, Items, items_from_preferences, read_items
from reward_models.labelling.overview import Overview, survey
from reward_models.labelling.sampling import SampleSettings, add_samples, sample_items
from reward_models.labelling.store import LabelStore

__all__ = [
    "Answer",
    "Item",
    "Items",
    "LabelStore",
    "Overview",
    "Presentation",
    "QuestionChooser",
    "SampleSettings",
    "StoredAnswer",
    "add_samples",
    "export_labels",
    "items_from_preferences",
    "merged_records",
    "read_items",
    "records_of",
    "sample_items",
    "survey",
]
