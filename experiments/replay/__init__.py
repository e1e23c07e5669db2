"""The authors' measured runs, replayed."""
