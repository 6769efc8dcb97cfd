"""The workload file: its schema, how it is read, and the files that it names."""
