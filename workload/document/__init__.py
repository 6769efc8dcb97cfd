"""The workload file: its schema, its reader, and the lookup of files that it names."""
