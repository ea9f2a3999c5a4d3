"""Running a stranger's generator under a clock it cannot touch.

``supervisor`` owns the clock; ``worker`` is the child's side, ``wire`` the frames between them.
``process`` starts and stops the child, ``schedule`` says what it is asked for, ``spool`` keeps what
it hands over, ``copies`` augments that meanwhile, and ``output_log`` keeps what it prints.
"""
