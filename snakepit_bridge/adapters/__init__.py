"""Adapters under the names that Snakepit's configuration and documentation give them."""
