"""What all batched agents share: the loop of `learn`, options, the actor-critic and group families."""
