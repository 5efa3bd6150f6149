"""The serving runtime: boot, health, drain, interceptors, metrics and errors, written once."""
