"""The processes of a worker: supervisor, parent and child, and the watchdog that looks after the child."""
