"""Event-sourced, observable gRPC bridge between Elixir and Python."""
