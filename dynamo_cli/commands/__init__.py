"""What the commands do: parse names and paths, load params, call one pipeline."""
