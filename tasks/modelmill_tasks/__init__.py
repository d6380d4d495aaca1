"""The tasks: what can be asked, one file each.

``modelmill_tasks.registry`` finds every module here that defines ``TASK``, and every installed plugin's.
"""
