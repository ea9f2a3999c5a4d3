"""Get a row of the leaderboard again: the same code, the same submission, the same settings.

``checkout`` finds the code and the submission a result names, ``again`` runs them in a process of
their own, and ``agreement`` says whether what came out is what was recorded.
"""
