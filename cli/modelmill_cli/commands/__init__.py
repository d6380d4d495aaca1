"""The commands, one file per group. A command imports what it needs when it runs, so ``--help`` is fast."""
