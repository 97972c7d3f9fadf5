"""One file per stage: read, call the library, write the outputs and their manifest."""
