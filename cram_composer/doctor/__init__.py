"""`cram doctor`: is this machine ready for a run, how fast is it, and what will the budget give?"""
