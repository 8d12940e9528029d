"""One trial in plain PyTorch: backbone, freezing, features, optimisation, fitting, checkpoints. No Ray, no MLflow."""
