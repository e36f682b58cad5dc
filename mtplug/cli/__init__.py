"""The commands; each module imports what is heavy only once it has its arguments."""
