"""From comparisons of responses to a trained reward model."""
