"""HTTP: routes, schemas, and what stands around every request."""
