"""What perf/fuzz.py brings to minipovid, one file per kind, each with the oracle that reads it too."""
