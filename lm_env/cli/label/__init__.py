"""`lm-env label`: judge responses on a local page, and write the judgements as records."""

from __future__ import annotations

from lm_env.cli.label.command import label_app

__all__ = ["label_app"]
