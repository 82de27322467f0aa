"""Common words, from which prompts are generated; all are ordinary in film reviews, and pronounced in CMUdict."""

from __future__ import annotations

__all__ = ["CONCEPT_NOUNS", "NOUNS", "RHYME_WORDS"]

NOUNS_LISTED = """
    actor baby beach boat book boy brother camera car castle cat child city clock dance daughter day detective
    dinner doctor dog door dream family farm father fire fish flower forest friend game garden ghost girl guitar gun
    hand hero home horse hospital house husband island job joke journey king kitchen lake letter life man map marriage
    money monster moon mother mountain murder music neighbor night ocean office painter party picture piano pirate plane
    planet police priest prison queen rain river road robot room school screen sea secret ship singer sister snow
    soldier song spy star storm story street student summer sun teacher theater thief town train tree truth vampire
    village voice war wedding wife window winter witch woman world writer
"""
NOUNS = tuple(NOUNS_LISTED.split())

CONCEPT_NOUNS_LISTED = "boy family father girl house life man mother son town woman world"
CONCEPT_NOUNS = tuple(CONCEPT_NOUNS_LISTED.split())
"""Nouns that are frequent in film reviews; all of them take the article "a"."""

RHYME_WORDS_LISTED = "cat crew heat hit key kid king kit light night queen ring screen shoe shot state street tree"
RHYME_WORDS = tuple(RHYME_WORDS_LISTED.split())
"""Nouns of one syllable, at most two of a sound, so that no one word rhymes with many.  The words with which clauses of
film reviews often end make perfect, near or half rhymes with them: it, see, me, seen, thing, did, do, night, great,
plot, that, movie, story, boring."""
