"""What a training writes down: checkpoints, log, identity, held-out FVU, and whether all of it is sound."""
