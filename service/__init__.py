"""The online service: settings, engine, HTTP API, metrics and logs."""
