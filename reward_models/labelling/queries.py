"""The longer SQL statements on the file of labels; the docstring of each lists the values that it takes.

`{asked}` stands for the condition on `questions q` that says which questions are asked now: items as a whole, or pairs.
"""

from __future__ import annotations

__all__ = ["ANSWERS", "NEW_ANSWER", "NEW_ITEM", "NEW_PRESENTATION", "OPEN_TO", "PRESENTATION", "PROGRESS"]

OPEN_TO = """
SELECT q.id FROM questions q WHERE {asked}
AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.question = q.id AND a.annotator = ? AND a.withdrawn_at IS NULL)
AND (SELECT count(*) FROM answers a WHERE a.question = q.id AND a.withdrawn_at IS NULL AND a.choice <> 'skip')
  + (SELECT count(*) FROM presentations p
     WHERE p.question = q.id AND p.state = 'open' AND p.annotator <> ? AND p.shown_at > ?) < ?
ORDER BY q.id"""
"""The questions that may be put to an annotator.

Values: the annotator's name, the name again, the time since which an open presentation counts, and how many annotators
answer each question.
"""

PROGRESS = """
SELECT coalesce(sum((SELECT count(*) FROM answers a
    WHERE a.question = q.id AND a.withdrawn_at IS NULL AND a.choice <> 'skip') >= ?), 0), count(*)
FROM questions q WHERE {asked}"""
"""How many questions enough annotators have answered, and how many questions there are.

Values: how many annotators are enough.
"""

PRESENTATION = """
SELECT p.question, p.positions, p.spans, q.responses, i.prompt, i.responses, i.columns
FROM presentations p JOIN questions q ON q.id = p.question JOIN items i ON i.id = q.item WHERE p.id = ?"""
"""What is shown in a presentation.  Values: its id."""

ANSWERS = """
SELECT a.id, q.item, a.question, a.annotator, a.choice, q.responses, p.positions, a.ranking, a.spans, a.seconds,
    a.answered_at
FROM answers a JOIN questions q ON q.id = a.question JOIN presentations p ON p.id = a.presentation
WHERE a.withdrawn_at IS NULL ORDER BY a.number"""
"""All valid answers, in the order in which they were given."""

NEW_ITEM = "INSERT OR IGNORE INTO items (key, prompt, responses, columns) VALUES (?, ?, ?, ?)"

NEW_PRESENTATION = """INSERT INTO presentations (id, question, annotator, positions, shown_at, state)
VALUES (?, ?, ?, ?, ?, 'open')"""

NEW_ANSWER = """INSERT INTO answers
    (id, presentation, question, annotator, choice, ranking, spans, seconds, answered_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
