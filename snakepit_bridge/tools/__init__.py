"""Tools: Python functions that Elixir calls. How they are described, loaded and run."""
