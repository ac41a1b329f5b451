"""How an answer's words are read: yes and no, letters, objects."""
