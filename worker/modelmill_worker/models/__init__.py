"""Which models a worker holds, and which worker should hold one."""
