"""Samples, objectives and the Trainer: what a text model's ``fit`` calls."""
