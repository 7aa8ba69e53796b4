"""Reinforcement learning on the model's own answers: prompts, rollouts, rewards, advantages, losses, alarms."""
