"""Small training sets made from installed packages."""
