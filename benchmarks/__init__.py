"""What we measure, against what users would run instead. Each module is a program of its own."""
