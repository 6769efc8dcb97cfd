"""Planning: when models run, on how many frames, and which weights are in memory then.

Everything here is pure: values in, decisions out. A ``Profile`` says what is known of a workload on a device.
``make_plan`` chooses the order of queries and the frames of each turn. ``residency`` follows from an order: which
segments are loaded and evicted at each turn. A ``Conductor`` follows a plan and tells a world what to do: the runner's
(:mod:`..loop.runner`), or the simulation's (:mod:`.simulate`). ``Review`` decides when a new plan is needed.
"""
