"""Dashboards for Grafana, written by code; rules and alerts for Prometheus beside them."""
