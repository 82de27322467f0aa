"""`lm-env demo`: its phases, what runs them, and the comparison of before and after."""
