"""Fine-tune language models with PyTorch Lightning and see why it works or silently fails."""

__version__ = "0.1.0"
