"""HOW IT IS EXAMINED: one file per benchmark."""
