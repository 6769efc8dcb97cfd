"""A bundle beside the baseline of an earlier one."""
