"""The YAML: its schema, how it is read, and why it is refused."""
