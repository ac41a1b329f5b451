"""A file of answers that somebody else's program wrote: whose answer is each row?

    rows = reading.rows(Path("answers.jsonl"))
    found = matching.matched(rows, questions, column=None)     # found.answers: {"1": "Yes", ...}

reading.py makes rows of any container, columns.py decides against the questions what each column says (their ids, their
pictures, their words, or the answer), questions.py knows the questions by all of these, matching.py gives every
question its row or says in one sentence why not. No benchmark and no tool has a place of its own here.
"""
