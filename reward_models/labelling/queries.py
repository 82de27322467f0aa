"""The longer questions to the file of labels, with what they take; `asked` says which kind of question is put now."""

from __future__ import annotations

__all__ = ["ANSWERS", "OPEN_TO", "PRESENTATION", "PROGRESS"]

OPEN_TO = """
SELECT q.id FROM questions q WHERE {asked}
AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.question = q.id AND a.annotator = ? AND a.withdrawn_at IS NULL)
AND (SELECT count(*) FROM answers a WHERE a.question = q.id AND a.withdrawn_at IS NULL AND a.choice <> 'skip')
  + (SELECT count(*) FROM presentations p
     WHERE p.question = q.id AND p.state = 'open' AND p.annotator <> ? AND p.shown_at > ?) < ?
ORDER BY q.id"""
"""The questions that may be put to an annotator: (name, name, since when an open one counts, how many answer each)."""

PROGRESS = """
SELECT coalesce(sum((SELECT count(*) FROM answers a
    WHERE a.question = q.id AND a.withdrawn_at IS NULL AND a.choice <> 'skip') >= ?), 0), count(*)
FROM questions q WHERE {asked}"""
"""How many questions enough annotators have answered, and how many there are: (how many answer)."""

PRESENTATION = """
SELECT p.question, p.positions, p.spans, q.responses, i.prompt, i.responses, i.columns
FROM presentations p JOIN questions q ON q.id = p.question JOIN items i ON i.id = q.item WHERE p.id = ?"""
"""What is shown in a presentation: (its id)."""

ANSWERS = """
SELECT a.id, q.item, a.question, a.annotator, a.choice, q.responses, p.positions, a.ranking, a.spans, a.seconds,
    a.answered_at
FROM answers a JOIN questions q ON q.id = a.question JOIN presentations p ON p.id = a.presentation
WHERE a.withdrawn_at IS NULL ORDER BY a.number"""
"""All valid answers, in the order in which they were given."""
