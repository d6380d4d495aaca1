"""The tasks: the contract of each, one file per task.

``modelmill_tasks.registry`` finds every module here that defines ``TASK``, and every installed plugin's.
"""
