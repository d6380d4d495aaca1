"""The OpenAPI document: schemas and routes that exist only to describe."""
