"""LLMRec Studio's core: data, prompts, models, training, ranking, metrics and explanations.

Importing this package is light; rooms that need PyTorch load it when they are imported themselves.
"""

__version__ = "0.1.0"
