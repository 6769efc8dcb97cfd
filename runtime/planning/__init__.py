"""When models run and what is in memory then: profiles, residency, plans, and a simulator of all three.

Everything here is pure: values in, decisions out. The runner and the simulator act on the same steps.
"""
