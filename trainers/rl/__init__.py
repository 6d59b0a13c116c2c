"""Reinforcement learning of latent reasoners: rollouts by the engine, their replay, ratios, rewards."""
