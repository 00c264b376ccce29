"""HTTP: schemas, routes, errors, and one concern per middleware."""
