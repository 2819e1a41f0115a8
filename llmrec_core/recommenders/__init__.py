"""One file per family of recommenders; ``registry`` builds and loads them."""
