"""Finished runs put to use: rankings and explanations for one user, from the pages and the command line.

``actions`` computes (PyTorch); ``client`` is light and talks to a child process that holds the loaded models.
"""
