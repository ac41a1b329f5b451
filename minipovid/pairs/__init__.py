"""Where preferences come from: read, made, checked and reviewed."""
