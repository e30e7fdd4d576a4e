"""The mathematics of PPO and GRPO: pure functions of tensors, and the rewards that they start from."""
