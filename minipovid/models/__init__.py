"""A vision-language model: its family, folder, conversation format, weights and attention."""
