"""Training on many ranks: weights, gradients and optimizer states sharded by FSDP2, each step as one rank takes it."""
