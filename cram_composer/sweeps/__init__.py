"""Many runs at one budget: what is planned, where it is trained, how it stands, and what came out."""
