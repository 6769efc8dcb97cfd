"""Evaluation for ``gemel eval``: accuracy of a bundle whose models do not fit into memory together.

:mod:`.cases` lists the runs, :mod:`.evaluate` runs and scores them, and :mod:`.reference` makes the reference answers.
:mod:`.answers` finds the answer that counts for each frame, and :mod:`.evaluation_report` makes tables and JSON. The
package needs the extra ``eval``.
"""
