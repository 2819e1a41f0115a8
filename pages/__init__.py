"""The screens of the Studio; ``app.py`` routes to them."""
