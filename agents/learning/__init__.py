"""The parts of an update: rollouts, policy, critic, advantages, losses, metrics, optimizer steps."""
