"""Many trials: what is proposed, what is stopped, and who runs it. The only place that imports ray.tune and optuna."""
