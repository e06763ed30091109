"""Mixed precision: which matrices lose most in 4 bits and get 8."""
