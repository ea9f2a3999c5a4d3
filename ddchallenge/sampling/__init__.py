"""Running a stranger's generator under a clock it cannot touch.

``supervisor`` owns the clock and the spool; ``worker`` is the child's side; ``wire`` the frames
between them; ``process`` starts and stops the child.
"""
