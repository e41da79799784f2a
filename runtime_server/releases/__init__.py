"""New generations: the gate that judges them, the rollout to devices, and publishing."""
