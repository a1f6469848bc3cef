"""What the Snakefile asks: the catalogue as files, job shapes, guards, estimates."""
