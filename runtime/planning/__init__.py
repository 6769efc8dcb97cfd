"""Planning: when models run, on how many frames, and which weights are in memory then.

Nothing here uses a device or a clock by itself. A ``Profile`` holds sizes, times and rates of a workload on a device.
``make_plan`` searches for the best order of turns and number of frames of each turn (:mod:`.search`), by an objective
(:mod:`.objectives`) and by what a :mod:`.timeline` expects of each plan. ``residency`` derives from the order
which segments are loaded and evicted at each turn. A ``Conductor`` follows a plan and tells a ``World`` what to do: the
runner (:mod:`..loop.runner`), or the simulation (:mod:`.simulate`). ``Review`` decides when a new plan is needed.
"""
