"""`python -m lm_env` is `lm-env`."""

from __future__ import annotations

from lm_env.cli import main

if __name__ == "__main__":
    main()
