"""Drift: whether merged models still answer as the original ones do, judged by samples that boxes have stored.

:mod:`.bundle_answers` has bundles answer samples, :mod:`.image_scores` compares the answers to one frame,
:mod:`.evidence` adds up what scores say, :mod:`.judge` gives verdicts, and :mod:`.drift_report` makes tables, JSON and
metrics. The package needs the extra ``eval``.
"""
