"""New generations: the gate, the rollout, publishing."""
