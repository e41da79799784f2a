"""The page of a running server, and the same numbers as JSON at `/api/v1` (docs/page.md)."""
