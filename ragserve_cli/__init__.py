"""The `ragserve` command line."""
