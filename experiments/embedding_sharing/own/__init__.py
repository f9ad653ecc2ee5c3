"""Variants of your own: each file here registers a connector and adds a row (docs/your_connector.md)."""
