"""View of a running bundle from outside: metrics, health, status, a live page, logs, and the service manager."""
