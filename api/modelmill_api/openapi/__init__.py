"""The OpenAPI document. This package describes requests and answers none."""
